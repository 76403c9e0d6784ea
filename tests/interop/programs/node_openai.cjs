// OpenAI's official client in Node: node node_openai.cjs URL MODEL ADAPTER
const OpenAI = require("openai");
const { check, expect } = require("./checks.cjs");

const [url, model, adapter] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Say hello in one short sentence." }];
const common = { model, messages, temperature: 0, max_completion_tokens: 16 };
const city = { type: "object", properties: { city: { enum: ["Bonn", "Oslo"] } }, required: ["city"] };
const weather = { type: "function", function: { name: "weather", parameters: city } };

async function main() {
  let text;
  await check("answers a chat", async () => {
    const answer = await client.chat.completions.create(common);
    text = answer.choices[0].message.content;
    return expect(answer.usage.completion_tokens > 0, text);
  });
  await check("streams the same text", async () => {
    const answer = await client.chat.completions.stream(common).finalChatCompletion();
    return expect(answer.choices[0].message.content === text, "the same text");
  });
  await check("lists the model and its adapters", async () => {
    const names = [];
    for await (const listed of client.models.list()) names.push(listed.id);
    return expect(names.includes(adapter), names.join(", "));
  });
  await check("answers with an adapter as the model", async () => {
    const answer = await client.chat.completions.create({ ...common, model: adapter });
    return expect(answer.choices[0].message.content !== text, answer.choices[0].message.content);
  });
  await check("streams demanded calls of tools", async () => {
    const demanded = { tools: [weather], tool_choice: "required", max_completion_tokens: 100 };
    const answer = await client.chat.completions.stream({ ...common, ...demanded }).finalChatCompletion();
    const [call] = answer.choices[0].message.tool_calls;
    return expect(JSON.parse(call.function.arguments).city, `${call.function.name} ${call.function.arguments}`);
  });
  await check("NotFoundError for an unknown model", async () => {
    const error = await client.chat.completions.create({ ...common, model: "unknown" }).catch((found) => found);
    return expect(error instanceof OpenAI.NotFoundError, error.message);
  });
}
main();
