// The cells of npm's `openai`: `create`, streamed and not, and its helpers `stream` and `parse`.

import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

import { PATIENCE, RESULTS, SHORT, known, listening, run } from "./cells.mjs";

const City = z.object({ city: z.string(), people: z.number() });
const TOOLS = Object.keys(RESULTS).map((name) => ({
  type: "function",
  function: {
    name,
    description: `The ${name} of a city.`,
    strict: true,
    parameters: {
      type: "object",
      properties: { city: { type: "string" } },
      required: ["city"],
      additionalProperties: false,
    },
  },
}));

function ofUsage(usage) {
  return usage && [
    usage.prompt_tokens,
    usage.completion_tokens,
    usage.total_tokens,
    usage.prompt_tokens_details.cached_tokens,
    usage.completion_tokens_details.reasoning_tokens,
  ];
}

function ofCompletion({ choices: [{ message, finish_reason: finish }], usage }) {
  return known({
    text: message.content,
    refusal: message.refusal,
    reasoning: message.reasoning_content,
    calls: message.tool_calls?.map((call) => [
      call.id,
      call.function.name,
      JSON.parse(call.function.arguments),
    ]),
    parsed: message.parsed,
    finish,
    usage: ofUsage(usage),
  });
}

function failure(error, text, cell) {
  if (cell.case === "cancel") return { left: true };
  if (!(error instanceof OpenAI.OpenAIError)) throw error;
  const { status, code, type } = error;
  const message = error.error?.message ?? error.message;
  return known({ error: error.constructor.name, status, code, type, message, text });
}

async function streamed(client, wanted, leave) {
  const asked = { stream: true, ...wanted };
  const chunks = await client.chat.completions.create(asked, { signal: leave.signal });
  let text = "";
  let refusal = "";
  let reasoning = "";
  let finish, usage;
  const calls = [];
  for await (const chunk of chunks) {
    usage = chunk.usage ?? usage;
    if (!chunk.choices.length) continue;
    const [{ delta, finish_reason }] = chunk.choices;
    text += delta.content ?? "";
    refusal += delta.refusal ?? "";
    reasoning += delta.reasoning_content ?? "";
    finish = finish_reason ?? finish;
    for (const { index, id, function: called } of delta.tool_calls ?? []) {
      calls[index] ??= { id, type: "function", function: { name: called.name, arguments: "" } };
      calls[index].function.arguments += called.arguments ?? "";
    }
    leave.soFar(text);
  }
  // Aborted, the loop ends as if all had been said.
  leave.signal.throwIfAborted();
  const tool_calls = calls.length ? calls : undefined;
  const message = { role: "assistant", content: text, refusal, tool_calls };
  message.reasoning_content = reasoning;
  return { choices: [{ message, finish_reason: finish }], usage };
}

async function stream(client, wanted, leave) {
  const runner = client.chat.completions.stream(wanted);
  runner.on("content", (_, snapshot) => leave.soFar(snapshot));
  leave.by = () => runner.abort();
  return await runner.finalChatCompletion();
}

const create = (client, wanted, leave) =>
  client.chat.completions.create(wanted, { signal: leave.signal });
const parse = (client, wanted, leave) =>
  client.chat.completions.parse(wanted, { signal: leave.signal });

const WAYS = { streamed, stream, create, parse };
const streams = (cell) => ["streamed", "stream"].includes(cell.way);

// How a client leaves: as soon as there is text, or, where it is shown none, after a while.
function leaving(cell) {
  const controller = new AbortController();
  const leave = { text: "", signal: controller.signal, by: () => controller.abort() };
  if (cell.case === "cancel" && !streams(cell)) leave.signal = AbortSignal.timeout(SHORT);
  leave.soFar = (text) => {
    leave.text = text;
    if (cell.case === "cancel" && text) leave.by();
  };
  return leave;
}

async function program(cell) {
  const heard = listening();
  const client = new OpenAI({
    baseURL: cell.base_url,
    apiKey: "none",
    maxRetries: cell.case === "retry" ? 2 : 0,
    // For all of an answer that is not streamed.
    timeout: cell.case === "silence" && streams(cell) ? PATIENCE : 60000,
    fetch: heard.fetch,
  });
  const wanted = { model: cell.model, messages: [{ role: "user", content: cell.question }] };
  if (["tools", "parallel", "loop"].includes(cell.case)) wanted.tools = TOOLS;
  if (cell.case === "structured") wanted.response_format = zodResponseFormat(City, "City");
  if (cell.case === "usage" && streams(cell)) {
    wanted.stream_options = { include_usage: true };
  }
  const seen = [];
  for (;;) {
    const leave = leaving(cell);
    let completion;
    try {
      completion = await WAYS[cell.way](client, wanted, leave);
    } catch (error) {
      return failure(error, leave.text, cell);
    }
    const saw = ofCompletion(completion);
    seen.push(saw);
    if (cell.case !== "loop" || !saw.calls) {
      if (cell.case === "silence" && heard.pings > 1) saw.pinged = true;
      return cell.case === "loop" ? seen : saw;
    }
    const results = saw.calls.map(([id, name]) => ({
      role: "tool",
      tool_call_id: id,
      content: RESULTS[name],
    }));
    wanted.messages = [...wanted.messages, completion.choices[0].message, ...results];
  }
}

await run(program);
