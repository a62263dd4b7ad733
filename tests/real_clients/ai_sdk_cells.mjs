// The cells of the Vercel AI SDK: `streamText` and `generateText`, which make loops themselves.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

import { RESULTS, SHORT, known, listening, run } from "./cells.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;
const City = z.object({ city: z.string(), people: z.number() });
const TOOLS = Object.fromEntries(
  Object.entries(RESULTS).map(([name, result]) => [
    name,
    tool({
      description: `The ${name} of a city.`,
      inputSchema: z.object({ city: z.string() }),
      execute: async () => result,
    }),
  ]),
);

function ofStep(step) {
  const { usage } = step;
  return known({
    text: step.text,
    reasoning: step.reasoningText,
    calls: step.toolCalls.map((call) => [call.toolCallId, call.toolName, call.input]),
    finish: step.finishReason,
    usage: usage.totalTokens && [
      usage.inputTokens,
      usage.outputTokens,
      usage.totalTokens,
      usage.inputTokenDetails.cacheReadTokens,
      usage.outputTokenDetails.reasoningTokens,
    ],
  });
}

function failure(error, text) {
  // In the stream it is what upstream said; before it, an exception.
  const said = error.data?.error ?? error;
  return known({
    error: error.name,
    status: error.statusCode,
    code: said.code,
    type: said.type,
    message: said.message ?? String(error),
    text,
  });
}

async function stream(asked, cell) {
  let text = "";
  const controller = new AbortController();
  const result = streamText({ ...asked, abortSignal: controller.signal, onError() {} });
  for await (const part of result.fullStream) {
    if (part.type === "error") return failure(part.error, text);
    if (part.type === "abort") return { left: true };
    if (part.type === "text-delta") {
      text += part.text;
      if (cell.case === "cancel") controller.abort();
    }
  }
  return { steps: await result.steps, parsed: cell.case === "structured" && (await result.output) };
}

async function generate(asked, cell) {
  const abortSignal = cell.case === "cancel" ? AbortSignal.timeout(SHORT) : undefined;
  try {
    const result = await generateText({ ...asked, abortSignal });
    return { steps: result.steps, parsed: cell.case === "structured" && result.output };
  } catch (error) {
    return cell.case === "cancel" ? { left: true } : failure(error);
  }
}

const WAYS = { stream, generate };

async function program(cell) {
  const heard = listening();
  const provider = createOpenAICompatible({
    name: "deltawire",
    baseURL: cell.base_url,
    apiKey: "none",
    includeUsage: cell.case === "usage",
    supportsStructuredOutputs: true,
    fetch: heard.fetch,
  });
  const asked = {
    model: provider(cell.model),
    prompt: cell.question,
    maxRetries: cell.case === "retry" ? 2 : 0,
  };
  if (["tools", "parallel", "loop"].includes(cell.case)) {
    Object.assign(asked, { tools: TOOLS, stopWhen: stepCountIs(5) });
  }
  if (cell.case === "structured") asked.output = Output.object({ schema: City });
  const saw = await WAYS[cell.way](asked, cell);
  if (!saw.steps) return saw;
  const steps = saw.steps.map(ofStep);
  if (cell.case === "loop") return steps;
  if (saw.parsed) return { ...steps[0], parsed: saw.parsed };
  return cell.case === "silence" && heard.pings > 1 ? { ...steps[0], pinged: true } : steps[0];
}

await run(program);
