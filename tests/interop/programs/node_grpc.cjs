// A client in Node that knows nothing but the address: node node_grpc.cjs TARGET MODEL ADAPTER
// It asks the server's reflection for the services.
const grpc = require("@grpc/grpc-js");
const { GrpcReflection } = require("grpc-js-reflection-client");
const { check, expect } = require("./checks.cjs");

const [target, , adapter] = process.argv.slice(2);
const insecure = grpc.credentials.createInsecure();

const request = (fields) => ({ text: "One, two,", sampling: { max_tokens: 8, temperature: 0 }, ...fields });

const generated = (client, fields) =>
  new Promise((resolve, reject) =>
    client.Generate(request(fields), (error, answer) => (error ? reject(error) : resolve(answer.samples[0]))),
  );

const streamed = (client, fields) =>
  new Promise((resolve, reject) => {
    let text = "";
    const call = client.GenerateStream({ request: request(fields) });
    call.on("data", (message) => message.samples.forEach((sample) => (text += sample.text)));
    call.on("error", reject);
    call.on("end", () => resolve(text));
  });

async function main() {
  const reflection = new GrpcReflection(target, insecure);
  let client;
  await check("lists the services", async () => {
    const names = await reflection.listServices();
    return expect(names.includes("blora.v1.GenerationService"), names.join(", "));
  });
  await check("makes a client of what reflection tells", async () => {
    const descriptor = await reflection.getDescriptorBySymbol("blora.v1.GenerationService");
    const services = descriptor.getPackageObject({ keepCase: true, longs: Number, enums: String, defaults: true });
    client = new services.blora.v1.GenerationService(target, insecure);
    return Object.keys(services.blora.v1.GenerationService.service).join(", ");
  });
  let text;
  await check("generates", async () => {
    const sample = await generated(client, {});
    text = sample.text;
    return expect(sample.token_ids.length === 8 && sample.finish_reason === "FINISH_REASON_LENGTH", text);
  });
  await check("streams the same text", async () => expect((await streamed(client, {})) === text, "the same text"));
  await check("generates with an adapter", async () => {
    const sample = await generated(client, { adapter });
    return expect(sample.text !== text, sample.text);
  });
  await check("an unknown adapter is NOT_FOUND", async () => {
    const error = await generated(client, { adapter: "unknown" }).catch((found) => found);
    return expect(error.code === grpc.status.NOT_FOUND, error.details);
  });
}
main();
