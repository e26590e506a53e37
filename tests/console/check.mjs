// The console in a browser, against a live server: every page is walked at two widths, light and dark, adapters are uploaded, by
// choosing and by dropping files, and others refused, answers are streamed, a tenant and its keys are made. Nothing may be logged as an error, asked of another host, or
// reach beyond the window's width.
//
//     node tests/console/check.mjs [--program target/release/chorus] [--url URL] [--pictures DIR]
//
// With `--url` a fresh server without tenants is used that is there already.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, mkdirSync, readFileSync, rmSync, cpSync, existsSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { chromium } from 'playwright-core';

const HERE = dirname(fileURLToPath(import.meta.url));
const ROOT = resolve(HERE, '../..');
const BASE = join(ROOT, 'tests/fixtures/models/tied');
const { values: options } = parseArgs({ options: {
  program: { type: 'string', default: join(ROOT, 'target/release/chorus') },
  url: { type: 'string' },
  pictures: { type: 'string', default: join(ROOT, 'target/console') },
  browser: { type: 'string', default: ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find(existsSync) ?? 'chromium' },
} });
const WIDTHS = [1280, 360];
const SCHEMES = ['light', 'dark'];

const freePort = () => new Promise((done) => {
  const server = createServer().listen(0, '127.0.0.1', () => {
    const { port } = server.address();
    server.close(() => done(port));
  });
});

async function started(folder) {
  const port = await freePort();
  mkdirSync(join(folder, 'adapters'));
  for (const name of ['all-linear', 'layers-int']) cpSync(join(BASE, 'adapters', name), join(folder, 'adapters', name), { recursive: true });
  const child = spawn(options.program, ['serve', '--model', BASE, '--adapters', join(folder, 'adapters'), '--store', join(folder, 'store'),
    '--listen', `127.0.0.1:${port}`], { stdio: ['ignore', 'ignore', 'pipe'] });
  let said = '';
  child.stderr.on('data', (data) => { said += data; });
  const url = `http://127.0.0.1:${port}`;
  for (let tries = 0; tries < 300; tries += 1) {
    if (child.exitCode !== null) break;
    if (await fetch(`${url}/ready`).then(({ ok }) => ok, () => false)) return { url, child };
    await new Promise((done) => setTimeout(done, 200));
  }
  child.kill();
  throw new Error(`the server did not start: ${said}`);
}

// Notes what no page may do. Refusals that a check means to get are logged by the browser, too, and taken off the list.
function watch(page, url) {
  const wrong = [];
  const meant = [];
  page.on('console', (message) => {
    if (!['error', 'warning'].includes(message.type())) return;
    const at = meant.findIndex((status) => message.text().includes(`status of ${status}`));
    if (at >= 0) meant.splice(at, 1);
    else wrong.push(`${message.type()}: ${message.text()} (${message.location().url})`);
  });
  page.on('pageerror', (error) => wrong.push(String(error.stack)));
  page.on('request', (request) => {
    if (new URL(request.url()).origin !== new URL(url).origin) wrong.push(`a request to ${request.url()}`);
    if (/chk-|key=/i.test(request.url())) wrong.push(`a key in ${request.url()}`);
  });
  return { wrong, meant };
}

async function fits(page, what) {
  const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.ok(over <= 0, `${what} reaches ${over} pixels beyond the window`);
}

async function go(page, name) {
  await page.locator(`nav a[href="#/${name}"]`).click();
  await page.locator(`#page-${name}`).waitFor();
}

async function pictures(page, label) {
  for (const width of WIDTHS) {
    for (const colorScheme of SCHEMES) {
      await page.setViewportSize({ width, height: width === 360 ? 740 : 860 });
      await page.emulateMedia({ colorScheme });
      await fits(page, `${label} at ${width}`);
      await page.screenshot({ path: join(options.pictures, `${label}-${width}-${colorScheme}.png`), fullPage: true });
    }
  }
  await page.setViewportSize({ width: 1280, height: 860 });
}

// ---- Checks, in the order in which they change the server

async function checkPlayground(page) {
  await go(page, 'playground');
  await page.locator('#voices input').first().waitFor();
  await page.locator('#prompt').fill('Name three birds.');
  for (const name of ['all-linear', 'layers-int']) await page.getByLabel(name, { exact: true }).check();
  await page.locator('#others').fill('all-linear@v1');
  await page.locator('#max-tokens').fill('24');
  await page.locator('#seed').fill('7');
  await page.getByRole('button', { name: 'Ask' }).click();
  await page.locator('#play-said', { hasText: /all-linear@v1: \d+ tokens/ }).waitFor({ timeout: 60_000 });
  assert.equal(await page.locator('.answer').count(), 4);
  const facts = await page.locator('.answer').evaluateAll((cards) => cards.map((card) => card.querySelector('dl').innerText));
  assert.match(facts[1], /all-linear@v1;sha256=[0-9a-f]{64}/);
  for (const fact of facts) assert.match(fact, /(ms|s)\n[\s\S]*(length|stop)/, fact);
  await pictures(page, 'playground');
  // One that is stopped, and one that is not there.
  await page.locator('#max-tokens').fill('200');
  await page.locator('#others').fill('nobody');
  page.watched.meant.push(404);
  await page.getByRole('button', { name: 'Ask' }).click();
  await page.locator('.answer .note').waitFor();
  assert.match(await page.locator('.answer .note').innerText(), /nobody/);
  await page.getByRole('button', { name: 'Stop' }).click().catch(() => {});
  await page.locator('#play-said', { hasText: 'nobody was refused' }).waitFor({ timeout: 60_000 });
}

async function checkOverview(page) {
  await go(page, 'overview');
  await page.locator('.tile').first().waitFor();
  await page.waitForTimeout(4500);
  const text = await page.locator('#page-overview').innerText();
  assert.match(text, /generated and \d+ of prompts since the start/);
  assert.match(text, /\/v1\/chat\/completions/);
  assert.ok((await page.locator('polyline').first().getAttribute('points')).length > 0);
  await pictures(page, 'overview');
}

const files = (name, config) => {
  const folder = join(BASE, 'adapters', name);
  const parts = ['adapter_config.json', 'adapter_model.safetensors'].map((file) => join(folder, file));
  return config ? [config, parts[1]] : parts;
};

async function upload(page, name, paths) {
  await page.locator('#files').setInputFiles(paths);
  await page.locator('#upload-name').fill(name);
  await page.locator('#upload button[type=submit]').click();
}

async function checkAdapters(page) {
  await go(page, 'adapters');
  await page.locator('#adapters-list table').waitFor();
  await upload(page, 'birds', files('dora'));
  await page.locator('#upload-said', { hasText: 'birds@v1 is there' }).waitFor({ timeout: 30_000 });
  await upload(page, 'birds', files('rslora'));
  await page.locator('#upload-said', { hasText: 'birds@v2 is there' }).waitFor({ timeout: 30_000 });
  // The configuration of one rank with the weights of another.
  page.watched.meant.push(422);
  await upload(page, 'birds', files('all-linear', join(BASE, 'adapters/layers-int/adapter_config.json')));
  await page.locator('#upload-note .note').waitFor();
  const refusal = await page.locator('#upload-note').innerText();
  assert.match(refusal, /422/);
  console.log(`    refused: ${refusal.replaceAll('\n', ' | ')}`);
  await page.getByRole('button', { name: 'Versions of birds' }).click();
  await page.locator('#percent-birds\\@v1').fill('25');
  await page.getByRole('button', { name: 'Give birds@v1 this share' }).click();
  await page.locator('#adapters-said', { hasText: 'birds@v1 has 25 %' }).waitFor();
  await page.getByRole('button', { name: 'pin birds' }).click();
  await page.locator('#adapters-said', { hasText: 'stays in memory' }).waitFor();
  await pictures(page, 'adapters');
  await page.getByRole('button', { name: 'Activate birds@v1' }).click();
  await page.locator('#adapters-said', { hasText: 'birds@v1 answers all' }).waitFor();
  // The keyboard alone: not deleted with Escape, deleted with the button.
  await page.locator('#delete-birds').focus();
  await page.keyboard.press('Enter');
  await page.locator('#confirm[open]').waitFor();
  assert.match(await page.locator('#confirm-text').innerText(), /birds goes with all its 2 versions \(v\d, v\d/);
  await page.screenshot({ path: join(options.pictures, 'confirm.png') });
  await page.keyboard.press('Escape');
  assert.ok(await page.locator('#delete-birds').isVisible());
  await page.locator('#delete-birds').click();
  await page.locator('#confirm-yes').click();
  await page.locator('#adapters-said', { hasText: 'birds is gone' }).waitFor();
  assert.equal(await page.locator('#delete-birds').count(), 0);
}

// The two files as somebody drops them on the page.
async function drop(page, config, weights) {
  const given = await page.evaluateHandle(({ config, weights }) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([config], 'adapter_config.json', { type: 'application/json' }));
    transfer.items.add(new File([Uint8Array.from(atob(weights), (char) => char.charCodeAt(0))], 'adapter_model.safetensors'));
    return transfer;
  }, { config, weights: weights.toString('base64') });
  await page.dispatchEvent('#drop', 'dragover', { dataTransfer: given });
  await page.locator('#drop.over').waitFor();
  await page.dispatchEvent('#drop', 'drop', { dataTransfer: given });
  await page.locator('#files-chosen', { hasText: 'adapter_model.safetensors' }).waitFor();
}

async function checkDrops(page) {
  const [config, weights] = files('dora').map((path) => readFileSync(path));
  await drop(page, config.toString(), weights);
  await page.locator('#upload-name').fill('dropped');
  await page.locator('#upload button[type=submit]').click();
  await page.locator('#upload-said', { hasText: 'dropped@v1 is there' }).waitFor({ timeout: 30_000 });
  // What others have written is text here, whatever it looks like: in a refusal, in what is typed, and in what is said.
  const markup = '<img src=x onerror="document.title=1">';
  page.watched.meant.push(422);
  await drop(page, JSON.stringify({ ...JSON.parse(config), target_modules: [markup] }), weights);
  await page.locator('#upload button[type=submit]').click();
  await page.locator('#upload-note .note', { hasText: markup }).waitFor();
  page.watched.meant.push(400);
  await page.locator('#upload-name').fill(markup);
  await page.locator('#upload button[type=submit]').click();
  await page.locator('#upload-note .note', { hasText: '400' }).waitFor();
  await page.locator('#upload-name').fill('dropped');
  assert.equal(await page.locator('img[onerror], img[src=x]').count(), 0);
  assert.match(await page.title(), /chorus/);
}

async function checkLargeUpload(page) {
  // 40 MB that are no weights: what was sent is shown on the way, and the refusal when they are there.
  const large = { name: 'adapter_model.safetensors', mimeType: 'application/octet-stream', buffer: Buffer.alloc(40e6, 'x') };
  const config = { name: 'adapter_config.json', mimeType: 'application/json', buffer: readFileSync(files('dora')[0]) };
  await page.evaluate(() => {
    const bar = document.getElementById('upload-bar');
    globalThis.seen = [];
    new MutationObserver(() => globalThis.seen.push(bar.value)).observe(bar, { attributes: true, attributeFilter: ['value'] });
  });
  page.watched.meant.push(422);
  await upload(page, 'large', [config, large]);
  await page.locator('#upload-note .note', { hasText: '422' }).waitFor({ timeout: 60_000 });
  const seen = await page.evaluate(() => globalThis.seen);
  assert.ok(seen.some((value) => value > 0 && value < 1), `the bar was at ${seen}`);
  assert.ok(await page.locator('#upload-bar').isHidden());
  await page.locator('#delete-dropped').click();
  await page.locator('#confirm-yes').click();
  await page.locator('#adapters-said', { hasText: 'dropped is gone' }).waitFor();
}

async function checkTenants(page) {
  await go(page, 'tenants');
  await page.locator('.tenant').first().waitFor();
  await page.locator('#tenant-name').fill('acme');
  await page.getByRole('button', { name: 'Create' }).click();
  await page.getByRole('button', { name: 'Use it here' }).click();
  const acme = page.getByRole('article', { name: 'acme' });
  await acme.waitFor();
  await acme.locator('#keys-acme').click();
  await acme.locator('select').selectOption('admin');
  await acme.getByRole('button', { name: 'New key' }).click();
  await page.locator('#tenants-said', { hasText: 'acme has a new key' }).waitFor();
  const made = await page.getByLabel('New key of acme, scope admin').inputValue();
  assert.ok(made.length > 20);
  await acme.locator('#quota-acme').click();
  await acme.getByLabel('Requests a minute').fill('600');
  await acme.getByRole('button', { name: 'Set quota' }).click();
  await acme.getByText('requests a minute: 600').waitFor();
  await acme.locator('#default-acme').click();
  await acme.getByLabel('Adapter that "default" means').fill('birds');
  await acme.getByRole('button', { name: 'Set', exact: true }).click();
  await acme.getByText('Default adapter: birds').waitFor();
  await pictures(page, 'tenants');
  return { operator: await page.evaluate(() => sessionStorage.getItem('chorus-key')), made };
}

async function checkKeys(page, { operator, made }) {
  // The operator is no tenant; the server says so.
  page.watched.meant.push(403, 403);
  await go(page, 'adapters');
  await page.locator('#adapters-note .note', { hasText: 'operator' }).waitFor();
  const use = async (key) => {
    await page.locator('#key').fill(key);
    await page.keyboard.press('Enter');
  };
  await use(made);
  await page.locator('#adapters-list', { hasText: 'None yet' }).waitFor();
  await upload(page, 'birds', files('dora'));
  await page.locator('#upload-said', { hasText: 'birds@v1 is there' }).waitFor({ timeout: 30_000 });
  page.watched.meant.push(403, 403);
  await go(page, 'tenants');
  await page.locator('#tenants-note .note', { hasText: 'operator' }).waitFor();
  await use(operator);
  // What was unfolded is so again.
  const acme = page.getByRole('article', { name: 'acme' });
  await acme.getByRole('button', { name: /^Revoke/ }).click();
  await page.locator('#confirm-yes').click();
  await page.locator('#tenants-said', { hasText: 'is revoked' }).waitFor();
  page.watched.meant.push(401, 401);
  await page.getByRole('button', { name: 'Forget' }).click();
  await page.locator('#tenants-note .note', { hasText: 'Type an API key above' }).waitFor();
  await pictures(page, 'no-key');
}

async function main() {
  const folder = mkdtempSync(join(tmpdir(), 'chorus-console-'));
  mkdirSync(options.pictures, { recursive: true });
  // First, so that no server is left where there is no browser.
  const browser = await chromium.launch({ executablePath: options.browser, args: ['--no-sandbox'] });
  const server = options.url ? { url: options.url } : await started(folder);
  try {
    const page = await browser.newPage({ viewport: { width: 1280, height: 860 } });
    page.setDefaultTimeout(15_000);
    page.watched = watch(page, server.url);
    await page.goto(server.url);
    await page.locator('#page-overview').waitFor();
    let keys;
    for (const check of [checkPlayground, checkOverview, checkAdapters, checkDrops, checkLargeUpload, checkTenants, checkKeys]) {
      keys = await check(page, keys);
      console.log(`passed  ${check.name}`);
    }
    assert.deepEqual(page.watched.wrong, []);
    console.log('passed  nothing was logged, no other host was asked');
  } finally {
    await browser.close();
    server.child?.kill();
    rmSync(folder, { recursive: true, force: true });
  }
}

await main();
