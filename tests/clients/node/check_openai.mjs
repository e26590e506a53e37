// openai-node: chats, streams, tools, zod, refusals, and what is given up.

import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { VERSION } from "openai/version";
import { z } from "zod";

import { BASE, KEYS, SHARED_BASE, SHARED_URL, URL, freed, is, metric, raises, run, same, until, untilRunning } from "./checks.mjs";

const ASK = [{ role: "user", content: "How do I cook rice?" }];
const CHAT = { model: BASE, messages: ASK, temperature: 0, max_tokens: 12 };
const ENDLESS = { ...CHAT, max_tokens: 4000, ignore_eos: true };
const Mood = z.object({ mood: z.enum(["good", "bad"]), sure: z.boolean() });
const COOK = {
  type: "function",
  function: {
    name: "cook",
    description: "Cooks",
    parameters: { type: "object", properties: { dish: { enum: ["rice", "soup"] } }, required: ["dish"], additionalProperties: false },
  },
};

const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: "none" });
const holder = (apiKey, maxRetries = 0) => new OpenAI({ baseURL: `${SHARED_URL}/v1`, apiKey, maxRetries });
const chat = (fields = {}) => client.chat.completions.create({ ...CHAT, ...fields });
const voice = (response) => response.headers.get("x-chorus-adapter").split(";")[0];

async function collect(stream) {
  const chunks = [];
  for await (const chunk of await stream) chunks.push(chunk);
  return chunks;
}

async function models_are_listed_and_retrieved() {
  const ids = (await collect(client.models.list())).map((model) => model.id);
  is(ids.includes(BASE) && ids.includes("pirate"), `listed are ${ids}`);
  for (const id of [BASE, `${BASE}:pirate`, "pirate@v1"]) same((await client.models.retrieve(id)).id, id, "id");
  same((await holder(KEYS.acme).models.retrieve(SHARED_BASE)).id, SHARED_BASE, "an id with a slash");
  same((await raises(OpenAI.NotFoundError, client.models.retrieve("nobody"))).code, "model_not_found", "code");
}

async function a_chat_is_answered() {
  const { data, response, request_id } = await client.chat.completions.create(CHAT).withResponse();
  same([data.object, data.model, data.choices.length], ["chat.completion", BASE, 1]);
  const { message, finish_reason, index, logprobs } = data.choices[0];
  same([message.role, message.refusal, index, logprobs, typeof message.content], ["assistant", null, 0, null, "string"]);
  is(["stop", "length"].includes(finish_reason), finish_reason);
  same(data.usage.total_tokens, data.usage.prompt_tokens + data.usage.completion_tokens, "total_tokens");
  is(request_id.startsWith("req-") && data._request_id === request_id, `the request's id is ${request_id}`);
  same(voice(response), "base");
}

async function a_chat_is_streamed() {
  const whole = (await chat()).choices[0];
  const chunks = await collect(chat({ stream: true, stream_options: { include_usage: true } }));
  const last = chunks.pop();
  same([last.choices, last.usage.total_tokens > 0], [[], true]);
  same(chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""), whole.message.content, "the text");
  same(chunks.at(-1).choices[0].finish_reason, whole.finish_reason, "finish_reason");
  same(new Set(chunks.map((chunk) => `${chunk.id} ${chunk.created} ${chunk.model}`)).size, 1, "the number of ids");
}

async function the_events_of_a_stream() {
  const stream = client.chat.completions.stream({ ...CHAT, stop: [" "] });
  let text = "";
  stream.on("content", (delta) => (text += delta));
  same((await stream.finalChatCompletion()).choices[0].message.content, text, "the text");
  same(await stream.finalContent(), text, "the final content");
}

async function a_text_is_completed() {
  const fields = { model: "sql", prompt: ["Once upon a time", "Two"], temperature: 0, max_tokens: 8, logprobs: 2 };
  const answer = await client.completions.create(fields);
  same(answer.choices.map((choice) => choice.index), [0, 1], "the indices");
  same(answer.choices[0].logprobs.tokens.join(""), answer.choices[0].text, "the tokens");
  const chunks = await collect(client.completions.create({ ...fields, stream: true }));
  const texts = ["", ""];
  for (const { choices } of chunks) for (const { index, text } of choices) texts[index] += text;
  same(texts, answer.choices.map((choice) => choice.text), "the texts streamed");
}

async function fields_are_understood() {
  const fields = { n: 2, seed: 3, temperature: 1, top_p: 0.9, stop: ["\u2603"], presence_penalty: 0.5, logprobs: true, top_logprobs: 2 };
  const own = { top_k: 40, min_p: 0.05, repetition_penalty: 1.1, ignore_eos: true, user: "ann", metadata: { a: "b" }, store: true };
  const answer = await chat({ ...fields, ...own });
  same([answer.choices.length, answer.usage.completion_tokens], [2, 24]);
  const content = (await chat({ ...fields, ...own })).choices.map((choice) => choice.message.content);
  same(content, answer.choices.map((choice) => choice.message.content), "the second of one seed");
}

async function an_adapter_is_named_by_model_or_header() {
  const ways = [[{ model: "pirate" }, {}], [{ model: `${BASE}:pirate` }, {}], [{}, { headers: { "X-Adapter": "pirate" } }]];
  for (const [fields, options] of ways) {
    const { data, response } = await client.chat.completions.create({ ...CHAT, ...fields }, options).withResponse();
    same([voice(response), data.model], ["pirate@v1", fields.model ?? BASE]);
  }
  const pirate = new OpenAI({ baseURL: `${URL}/v1`, apiKey: "none", defaultHeaders: { "X-Adapter": "pirate" } });
  same(voice(await pirate.chat.completions.create(CHAT).asResponse()), "pirate@v1");
}

async function refusals_are_the_errors_of_the_client() {
  const asked = (key, fields = {}, retries = 0) => holder(key, retries).chat.completions.create({ ...CHAT, model: SHARED_BASE, ...fields });
  const expected = [
    [OpenAI.BadRequestError, () => chat({ temperature: 9 }), 400, null],
    [OpenAI.BadRequestError, () => chat({ max_tokens: 9000, stream: true }), 400, "context_length_exceeded"],
    [OpenAI.AuthenticationError, () => asked("wrong"), 401, "invalid_api_key"],
    [OpenAI.PermissionDeniedError, () => holder(KEYS.acme).get("/admin/tenants"), 403, "insufficient_scope"],
    [OpenAI.NotFoundError, () => asked(KEYS.acme, { model: "secret" }), 404, "model_not_found"],
    [OpenAI.RateLimitError, () => asked(KEYS.poor, { model: "mine" }, 3), 429, "insufficient_quota"],
  ];
  for (const [kind, call, status, code] of expected) {
    const error = await raises(kind, call());
    same([error.status, error.code, error.requestID.startsWith("req-")], [status, code, true], kind.name);
    same(Object.keys(error.error), ["message", "type", "param", "code"], "the error's keys");
  }
  same((await raises(OpenAI.APIError, client.get("/chat/completions"))).status, 405);
  same((await raises(OpenAI.APIError, chat({ messages: [{ role: "user", content: "x".repeat(9 << 20) }] }))).status, 413);
}

async function a_full_server_is_asked_again() {
  let refusals = 0;
  const counting = async (...given) => {
    const answer = await fetch(...given);
    refusals += answer.status === 503;
    return answer;
  };
  const acme = new OpenAI({ baseURL: `${SHARED_URL}/v1`, apiKey: KEYS.acme, maxRetries: 20, fetch: counting });
  const brief = { ...CHAT, model: SHARED_BASE };
  // Two run and two wait, which is all that may.
  const endless = { ...brief, max_tokens: 2500, ignore_eos: true, stream: true };
  const running = [await acme.chat.completions.create(endless), await acme.chat.completions.create(endless)];
  const waiting = [acme.chat.completions.create(brief), acme.chat.completions.create(brief)];
  await until(async () => (await metric("chorus_requests_waiting", SHARED_URL)) > 1);
  const error = await raises(OpenAI.InternalServerError, holder(KEYS.acme).chat.completions.create(brief));
  same([error.status, error.code, Number(error.headers.get("retry-after")) > 0], [503, "overloaded", true]);
  const again = acme.chat.completions.create(brief);
  await until(() => refusals > 0);
  for (const stream of running) stream.controller.abort();
  same((await Promise.all([...waiting, again])).map((answer) => answer.model), [SHARED_BASE, SHARED_BASE, SHARED_BASE]);
}

async function a_failure_in_the_middle_of_a_stream() {
  const chunks = [];
  const read = async () => {
    for await (const chunk of await client.chat.completions.create({ ...ENDLESS, stream: true }, { headers: { "X-Request-Timeout": "0.5" } })) {
      chunks.push(chunk);
    }
  };
  const error = await raises(OpenAI.APIError, read());
  same([error.code, error.type, chunks.length > 1], ["deadline_exceeded", "server_error", true]);
}

async function what_is_aborted_frees_the_server() {
  await freed(async () => {
    const stream = await chat({ ...ENDLESS, stream: true });
    for await (const _ of stream) break;
  });
  await freed(async () => {
    const controller = new AbortController();
    const asked = raises(OpenAI.APIUserAbortError, client.chat.completions.create(ENDLESS, { signal: controller.signal }));
    await untilRunning();
    controller.abort();
    await asked;
  });
  await freed(() => raises(OpenAI.APIConnectionTimeoutError, client.chat.completions.create(ENDLESS, { timeout: 400, maxRetries: 0 })));
}

async function a_form_is_parsed_by_zod() {
  const fields = { ...CHAT, max_tokens: 60, response_format: zodResponseFormat(Mood, "mood") };
  Mood.parse((await client.chat.completions.parse(fields)).choices[0].message.parsed);
  const final = await client.chat.completions.stream({ ...fields, model: "pirate" }).finalChatCompletion();
  Mood.parse(final.choices[0].message.parsed);
}

async function tools_are_called() {
  const fields = { ...CHAT, max_tokens: 60, tools: [COOK], tool_choice: "required", parallel_tool_calls: false };
  const { message, finish_reason } = (await client.chat.completions.create(fields)).choices[0];
  same([finish_reason, message.tool_calls[0].type, message.tool_calls[0].function.name], ["tool_calls", "function", "cook"]);
  is(["rice", "soup"].includes(JSON.parse(message.tool_calls[0].function.arguments).dish), JSON.stringify(message));
  const [call] = (await client.chat.completions.stream(fields).finalChatCompletion()).choices[0].message.tool_calls;
  same(call.function, message.tool_calls[0].function, "the call streamed");
  const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "Done." };
  const again = await chat({ messages: [...ASK, message, result], tools: [COOK], tool_choice: "none" });
  is(again.choices[0].message.content, "no text");
}

async function tools_are_run() {
  const called = [];
  const tool = zodFunction({ name: "feel", parameters: Mood, function: (given) => called.push(given) && "Fine." });
  const fields = { ...CHAT, max_tokens: 60, tools: [tool], tool_choice: { type: "function", function: { name: "feel" } } };
  await client.chat.completions.runTools(fields, { maxChatCompletions: 1 }).done();
  Mood.parse(called[0]);
}

async function texts_are_embedded() {
  const answer = await client.embeddings.create({ model: BASE, input: ["rice", "soup"] });
  same([answer.data.length, answer.data[0].embedding.length], [2, answer.data[1].embedding.length]);
  is(answer.data[0].embedding.every(Number.isFinite), "not all are numbers");
}

async function a_response_is_made() {
  const fields = { model: BASE, input: "How do I cook rice?", temperature: 0, max_output_tokens: 16 };
  const answer = await client.responses.create(fields);
  is(answer.output_text && answer.usage.output_tokens > 0, JSON.stringify(answer));
  const events = await collect(client.responses.create({ ...fields, stream: true }));
  const text = events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta).join("");
  same([events[0].type, text], ["response.created", answer.output_text]);
  const parsed = await client.responses.parse({ ...fields, max_output_tokens: 60, text: { format: zodTextFormat(Mood, "mood") } });
  Mood.parse(parsed.output_parsed);
}

await run(`openai-node ${VERSION}`, [
  models_are_listed_and_retrieved, a_chat_is_answered, a_chat_is_streamed, the_events_of_a_stream, a_text_is_completed, fields_are_understood,
  an_adapter_is_named_by_model_or_header, refusals_are_the_errors_of_the_client, a_full_server_is_asked_again,
  a_failure_in_the_middle_of_a_stream, what_is_aborted_frees_the_server, a_form_is_parsed_by_zod, tools_are_called, tools_are_run,
  texts_are_embedded, a_response_is_made,
]);
process.exit(0);
