// A tool loop with the Vercel AI SDK, streaming. BASE_URL says where.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const city = z.object({ city: z.string() });
const provider = createOpenAICompatible({
  name: "deltawire",
  baseURL: process.env.BASE_URL,
  apiKey: "none",
  includeUsage: true,
});
const result = streamText({
  model: provider("gpt-5"),
  system: "Use the tools.",
  prompt: "How is Rome?",
  maxRetries: 0,
  stopWhen: stepCountIs(5),
  tools: {
    weather: tool({
      description: "The weather of a city.",
      inputSchema: city,
      execute: async () => "sun",
    }),
    population: tool({
      description: "The population of a city.",
      inputSchema: city,
      execute: async () => ({ people: 2800000 }),
    }),
  },
});
for await (const part of result.fullStream) {
  if (part.type === "error") throw part.error;
}
console.log(await result.text);
