// What the checks of a client for node need: as ../checks.py.

import assert from "node:assert/strict";

export const URL = process.env.CHORUS_URL ?? "http://127.0.0.1:8080";
export const BASE = process.env.CHORUS_BASE ?? "smollm2-135m-instruct";
export const SHARED_URL = process.env.CHORUS_SHARED_URL ?? "";
export const SHARED_BASE = process.env.CHORUS_SHARED_BASE ?? "";
export const KEYS = JSON.parse(process.env.CHORUS_KEYS ?? "{}");

const NO_ROUTE = /no such endpoint: \w+ [^\s'"]+/;
const MISSING = /no such endpoint: \w+ [^\s'"]+|'[^']*' is not supported by this server/;
const PATIENCE = 90_000;

export function same(got, wanted, what = "it") {
  assert.deepEqual(got, wanted, `${what} is ${JSON.stringify(got)}, not ${JSON.stringify(wanted)}`);
}

export function is(condition, why) {
  assert.ok(condition, why);
}

/** The error that the promise ends with, which is of this very class, and not for the lack of what is asked. */
export async function raises(kind, promise) {
  let got;
  try {
    got = await promise;
  } catch (why) {
    if (why.constructor !== kind || NO_ROUTE.test(why.message)) throw why;
    return why;
  }
  throw new Error(`no ${kind.name} but ${JSON.stringify(got)}`.slice(0, 300));
}

export async function metric(name, url = URL) {
  const text = await (await fetch(`${url}/metrics`)).text();
  return Number(text.split("\n").find((line) => line.startsWith(`${name} `)).split(" ")[1]);
}

export async function until(condition) {
  while (!(await condition())) await new Promise((go) => setTimeout(go, 10));
}

export const untilRunning = () => until(async () => (await metric("chorus_requests_running")) > 0);
const untilIdle = () =>
  until(async () => (await metric("chorus_requests_running")) + (await metric("chorus_requests_waiting")) === 0);

/** What is begun is given up: the server computes no more for it, though all that was asked for was not computed. */
export async function freed(begin) {
  await untilIdle();
  const cancelled = await metric("chorus_jobs_cancelled_total");
  await begin();
  await untilIdle();
  is((await metric("chorus_jobs_cancelled_total")) > cancelled, "it was answered to its end");
}

/** Runs the checks, or those that are named: functions that ask something, and throw where the answer is not what is expected. */
export async function run(client, checks) {
  const wanted = process.argv.slice(2);
  console.log(JSON.stringify({ client }));
  for (const check of checks) {
    if (wanted.length && !wanted.includes(check.name)) continue;
    const begin = performance.now();
    const line = { check: check.name, outcome: "passed", why: "" };
    let timer;
    const slow = new Promise((_, fail) => (timer = setTimeout(() => fail(new Error("no answer in time")), PATIENCE)));
    try {
      await Promise.race([check(), slow]);
    } catch (why) {
      const missing = MISSING.exec(`${why.message} ${why.cause?.message ?? ""}`);
      line.outcome = missing ? "not there" : "failed";
      const kind = why instanceof assert.AssertionError ? "" : `${why.constructor.name}: `;
      line.why = missing?.[0] ?? `${kind}${why.message}`.replace(/\s+/g, " ").slice(0, 400);
      if (wanted.length) console.error(why);
    }
    clearTimeout(timer);
    line.seconds = Math.round(performance.now() - begin) / 1000;
    console.log(JSON.stringify(line));
  }
}
