// The console of chorus. It asks the routes that clients ask, with the key that was typed. What the server says reaches the page as
// text, never as markup: names and answers may be anybody's.

const KEY = 'chorus-key';
const POLL = 2000; // Milliseconds from one look at the metrics to the next.
const KEPT = 150; // Looks that are kept: five minutes.
const LEAST = 15; // Looks that a chart has room for at least.
const RECENT = 30; // Looks that percentiles are of: one minute.
const SVG = 'http://www.w3.org/2000/svg';

const $ = (id) => document.getElementById(id);

// ---- What is shown

// An element with these properties and children; strings become text.
function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (name === 'class') made.className = value;
    else if (name in made && typeof value !== 'string') made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const whole = new Intl.NumberFormat('en');
const brief = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });
const number = (value) => (Number.isFinite(value) ? whole.format(Math.round(value)) : '–');

function rate(value) {
  if (!Number.isFinite(value)) return '–';
  return value >= 100 ? number(value) : brief.format(value);
}

function bytes(value) {
  if (!Number.isFinite(value)) return '–';
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let at = 0;
  for (; value >= 1024 && at < units.length - 1; at += 1) value /= 1024;
  return `${brief.format(value)} ${units[at]}`;
}

function seconds(value) {
  if (!Number.isFinite(value)) return '–';
  return value < 1 ? `${number(value * 1000)} ms` : `${brief.format(value)} s`;
}

const time = (unix) => new Date(unix * 1000).toLocaleString('en-GB', { dateStyle: 'medium', timeStyle: 'short' });

function ago(unix) {
  if (!unix) return 'never';
  const passed = Math.max(0, Date.now() / 1000 - unix);
  for (const [length, unit] of [[86400, 'd'], [3600, 'h'], [60, 'min']]) {
    if (passed >= length) return `${Math.floor(passed / length)} ${unit} ago`;
  }
  return 'just now';
}

const digest = (text) => text.replace(/^sha256:/, '').slice(0, 12);
const plural = (count, one) => `${number(count)} ${one}${count === 1 ? '' : 's'}`;
const tag = (text, kind = '') => el('span', { class: `tag ${kind}` }, text);

// A table of such columns, which folds on narrow screens. A row is its cells, or an element over all of its width.
function table(columns, rows, caption) {
  const head = el('tr', { role: 'row' }, columns.map((column) => el('th', { scope: 'col', role: 'columnheader', class: column.class }, column.name)));
  const cell = (value, at) => {
    const { name, class: kind } = columns[at];
    return el('td', { role: 'cell', class: `${kind ?? ''}${at === 0 ? ' first' : ''}`, 'data-label': name || null }, el('div', {}, value));
  };
  const row = (cells) => {
    if (Array.isArray(cells)) return el('tr', { role: 'row' }, cells.map(cell));
    return el('tr', { role: 'row', class: 'inner' }, el('td', { role: 'cell', colspan: String(columns.length) }, cells));
  };
  const shown = el('table', { class: 'folds', role: 'table', 'aria-label': caption });
  shown.append(el('thead', { role: 'rowgroup' }, head), el('tbody', { role: 'rowgroup' }, rows.map(row)));
  return el('div', { class: 'framed' }, shown);
}

// Puts children in the place of what was there; what had the focus has it again, where it is still there.
function fill(place, ...children) {
  const focused = place.contains(document.activeElement) ? document.activeElement.id : '';
  place.replaceChildren(...children);
  if (focused) $(focused)?.focus();
}

function note(place, error) {
  if (!error) return place.replaceChildren();
  const more = [error.status, error.code, error.param, error.request].filter(Boolean).join(' · ');
  place.replaceChildren(el('div', { class: 'note bad' }, el('div', {}, error.message), error.hint && el('div', {}, error.hint),
    more && el('div', { class: 'code' }, more)));
}

// Asks whether it is meant; the answer comes when the dialog is closed.
function confirmed(title, text, yes) {
  const dialog = $('confirm');
  $('confirm-title').textContent = title;
  $('confirm-text').textContent = text;
  $('confirm-yes').textContent = yes;
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener('close', () => done(dialog.returnValue === 'yes'), { once: true }));
}

// ---- Asking the server

const key = () => sessionStorage.getItem(KEY) ?? '';
const authorization = () => (key() ? { Authorization: `Bearer ${key()}` } : {});

// What the server says of a refusal, in its words.
class Refusal extends Error {
  constructor(status, text, request) {
    let said;
    try { said = JSON.parse(text).error; } catch { /* A proxy's page. */ }
    super(said?.message ?? (text.trim().slice(0, 300) || 'the server said nothing'));
    Object.assign(this, { status, code: said?.code, param: said?.param, request });
    if (status === 401) this.hint = key() ? 'The key above is not one that this server knows.' : 'Type an API key above.';
  }
}

async function ask(path, { method = 'GET', json, signal } = {}) {
  const headers = authorization();
  if (json !== undefined) headers['Content-Type'] = 'application/json';
  const body = json === undefined ? undefined : JSON.stringify(json);
  let response;
  try {
    response = await fetch(path, { method, headers, body, signal, cache: 'no-store' });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Error(`The server could not be asked: ${error.message}`);
  }
  if (response.ok) return response;
  throw new Refusal(response.status, await response.text(), response.headers.get('x-request-id'));
}

const read = async (path, options) => (await ask(path, options)).json();
const at = (...parts) => '/v1/' + parts.map(encodeURIComponent).join('/');

// Does something that a button asks for, and shows how it ended.
async function act(button, [place, said], work) {
  note(place);
  said.textContent = '';
  button.disabled = true;
  try {
    said.textContent = (await work()) ?? '';
  } catch (error) {
    note(place, error);
    place.scrollIntoView({ block: 'nearest' });
  } finally {
    button.disabled = false;
  }
}

// ---- Overview

const samples = [];
let tiles;

// OpenMetrics: a map from the name of a series to its values, each with its labels.
function parseMetrics(text) {
  const series = new Map();
  for (const line of text.split('\n')) {
    const found = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, name, value] of (found[2] ?? '').matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value.replace(/\\(.)/g, (_, char) => (char === 'n' ? '\n' : char));
    }
    if (!series.has(found[1])) series.set(found[1], []);
    series.get(found[1]).push({ labels, value: Number(found[3]) });
  }
  return series;
}

const valueOf = (series, name) => series.get(`chorus_${name}`)?.[0]?.value ?? NaN;

function bucketsOf(series, name) {
  const bound = (text) => (text === '+Inf' ? Infinity : Number(text));
  return (series.get(`chorus_${name}_bucket`) ?? []).map(({ labels, value }) => [bound(labels.le), value]);
}

// The quantile of what was counted between two looks, evenly spread within a bucket.
function quantile(before, after, share) {
  const counts = after.map(([bound, count], at) => [bound, count - (before[at]?.[1] ?? 0)]);
  const all = counts.at(-1)?.[1] ?? 0;
  if (!(all > 0)) return NaN;
  const rank = share * all;
  const at = counts.findIndex(([, count]) => count >= rank);
  const [below, under] = at > 0 ? counts[at - 1] : [0, 0];
  const [bound, upto] = counts[at];
  return bound === Infinity ? below : below + (bound - below) * ((rank - under) / (upto - under));
}

function sample(series, now) {
  const generated = valueOf(series, 'generation_tokens_total');
  const prompt = valueOf(series, 'prompt_tokens_total');
  const first = bucketsOf(series, 'time_to_first_token_seconds');
  const latest = samples.at(-1);
  // A server that began anew counts from nothing.
  if (latest && generated < latest.generated) samples.length = 0;
  const before = samples.at(-1);
  const passed = before ? (now - before.now) / 1000 : NaN;
  const since = samples[Math.max(0, samples.length - RECENT)]?.first ?? first;
  samples.push({
    now, generated, prompt, first,
    generatedRate: before ? (generated - before.generated) / passed : NaN,
    promptRate: before ? (prompt - before.prompt) / passed : NaN,
    half: quantile(since, first, 0.5), most: quantile(since, first, 0.95),
    running: valueOf(series, 'requests_running'), waiting: valueOf(series, 'requests_waiting'),
    pages: valueOf(series, 'kv_pages_total') - valueOf(series, 'kv_pages_free'),
    resident: valueOf(series, 'adapter_resident_bytes'), ...troubles(series),
  });
  if (samples.length > KEPT) samples.shift();
}

// Answers of 400 and above, and of 500 and above with the steps that failed.
function troubles(series) {
  const answers = (from, to) => (series.get('chorus_requests_total') ?? [])
    .reduce((sum, { labels, value }) => sum + (labels.code >= from && labels.code < to ? value : 0), 0);
  return { refused: answers(400, 500), failed: answers(500, 600) + (valueOf(series, 'jobs_failed_total') || 0) };
}

function polyline(values, most, kind) {
  const line = document.createElementNS(SVG, 'polyline');
  const room = Math.max(LEAST, values.length) - 1;
  const right = (index) => (1 - (values.length - 1 - index) / room) * 100;
  const points = values.map((value, index) => [right(index).toFixed(2), value]).filter(([, value]) => Number.isFinite(value));
  line.setAttribute('points', points.map(([x, value]) => `${x},${(42 - (value / most) * 38).toFixed(1)}`).join(' '));
  line.setAttribute('class', kind);
  return line;
}

function draw(chart, lines) {
  const most = Math.max(...lines.flat().filter(Number.isFinite), 1e-9);
  chart.replaceChildren(...lines.map((values, index) => polyline(values, most, index ? 'two' : 'one')));
}

// A tile with one or two numbers, a chart of the same, and a line of text.
function tile(title, names, { full } = {}) {
  const chart = document.createElementNS(SVG, 'svg');
  for (const [name, value] of [['class', 'spark'], ['viewBox', '0 0 100 44'], ['preserveAspectRatio', 'none'], ['aria-hidden', 'true']]) {
    chart.setAttribute(name, value);
  }
  const kinds = names.length > 1 ? ['one', 'two'] : ['alone'];
  const values = names.map(() => el('dd', {}, '–'));
  const pairs = names.map((name, index) => el('div', { class: kinds[index] }, el('dt', {}, name), values[index]));
  const meter = full && el('meter', { min: '0', max: '1', 'aria-label': title });
  const text = el('p', {}, '\u00a0');
  $('tiles').append(el('div', { class: 'tile' }, el('h2', {}, title), el('dl', {}, pairs), chart, meter, text));
  return (shown, lines, said, share) => {
    shown.forEach((value, index) => { values[index].textContent = value; });
    draw(chart, lines);
    text.textContent = said;
    if (meter) meter.value = Number.isFinite(share) ? share : 0;
  };
}

function makeTiles() {
  tiles = {
    tokens: tile('Throughput', ['generated tokens/s', 'prompt tokens/s']),
    first: tile('Time to first token', ['p50', 'p95']),
    requests: tile('Requests', ['running', 'waiting']),
    pages: tile('KV pages in use', ['pages'], { full: true }),
    cache: tile('Adapter memory', ['in use'], { full: true }),
    troubles: tile('Refused and failed', ['refused', 'failed']),
  };
}

function showTiles(series) {
  const now = samples.at(-1);
  const line = (name) => samples.map((sample) => sample[name]);
  const value = (name) => valueOf(series, name);
  tiles.tokens([rate(now.generatedRate), rate(now.promptRate)], [line('generatedRate'), line('promptRate')],
    `${number(now.generated)} generated and ${number(now.prompt)} of prompts since the start`);
  tiles.first([seconds(now.half), seconds(now.most)], [line('half'), line('most')],
    Number.isFinite(now.half) ? 'of the last minute' : 'no request in the last minute');
  tiles.requests([number(now.running), number(now.waiting)], [line('running'), line('waiting')],
    `${number(value('adapter_requests_waiting'))} wait for an adapter`);
  const total = value('kv_pages_total');
  tiles.pages([number(now.pages)], [line('pages')], `of ${number(total)}; ${number(value('kv_pages_kept'))} free ones keep prefixes`, now.pages / total);
  const budget = value('adapter_cache_budget_bytes');
  tiles.cache([bytes(now.resident)], [line('resident')],
    `of ${bytes(budget)}; ${number(value('adapter_evictions_total'))} evicted`, now.resident / budget);
  const before = samples[Math.max(0, samples.length - RECENT)];
  const since = (name) => samples.map((sample, index) => sample[name] - samples[Math.max(0, index - 1)][name]);
  tiles.troubles([number(now.refused - before.refused), number(now.failed - before.failed)], [since('refused'), since('failed')],
    `in the last minute; ${number(now.refused)} and ${number(now.failed)} since the start`);
}

function showTables(series) {
  const tiers = (series.get('chorus_adapter_tier_bytes') ?? []).map(({ labels, value }) => {
    const count = series.get('chorus_adapter_tier_adapters')?.find((other) => other.labels.tier === labels.tier)?.value;
    return [labels.tier === 'host' ? 'memory' : labels.tier, number(count), bytes(value)];
  });
  const count = { class: 'number' };
  const value = (name) => number(valueOf(series, name));
  const lent = `${value('adapter_hits_total')} requests were lent theirs at once, ${value('adapter_misses_total')} after a load; ${value('adapters_leased')} are held now.`;
  $('tiers').replaceChildren(table([{ name: 'Place' }, { name: 'Adapters', ...count }, { name: 'Bytes', ...count }], tiers, 'Adapters by place'), el('p', { class: 'soft' }, lent));
  const refused = (series.get('chorus_requests_total') ?? []).filter(({ labels }) => Number(labels.code) >= 400)
    .map(({ labels, value }) => [labels.endpoint, labels.code, value]);
  const jobs = [['failed', 'step failed'], ['late', 'past its deadline'], ['cancelled', 'client went away']]
    .map(([name, said]) => ['generation', said, valueOf(series, `jobs_${name}_total`)]).filter(([, , value]) => value > 0);
  const rows = [...jobs, ...refused].sort((one, other) => other[2] - one[2]).slice(0, 12).map(([where, what, value]) => [where, what, number(value)]);
  const columns = [{ name: 'Route' }, { name: 'Status' }, { name: 'Requests', ...count }];
  $('errors').replaceChildren(rows.length ? table(columns, rows, 'Refused and failed') : el('p', { class: 'soft' }, 'Nothing since the start.'));
}

async function look() {
  if (document.hidden) return;
  try {
    const series = parseMetrics(await (await ask('/metrics')).text());
    if (page !== 'overview') return;
    if (!tiles) makeTiles();
    sample(series, performance.now());
    showTiles(series);
    showTables(series);
    note($('overview-note'));
    $('overview-state').textContent = 'Live, every two seconds';
  } catch (error) {
    if ([401, 403].includes(error.status)) {
      error.hint = 'The metrics of this server are for its operator: type the operator\'s key above, or start it with --metrics-open.';
    }
    $('overview-state').textContent = '';
    note($('overview-note'), error);
  }
}

let poll;

const overview = {
  enter() {
    look();
    poll = setInterval(look, POLL);
  },
  leave() { clearInterval(poll); },
};

// ---- Adapters

const opened = new Set();
const adapterSpots = () => [$('adapters-note'), $('adapters-said')];

async function loadAdapters() {
  try {
    const { tenant, data } = await read('/v1/adapters');
    const shown = await Promise.all(data.map(async (adapter) => [adapter, opened.has(adapter.name) ? await read(at('adapters', adapter.name)) : null]));
    $('adapters-whose').textContent = tenant ? `of ${tenant}` : '';
    fill($('adapters-list'), data.length ? adapterTable(shown) : el('p', { class: 'panel soft' }, 'None yet: upload one below.'));
    return true;
  } catch (error) {
    $('adapters-whose').textContent = '';
    $('adapters-list').replaceChildren();
    note($('adapters-note'), error);
    return false;
  }
}

const statusTag = (status) => tag(status, { active: 'good', incompatible: 'bad' }[status]);

function adapterTable(shown) {
  const right = { class: 'number' };
  const columns = [{ name: 'Name' }, { name: 'Version', ...right }, { name: 'Rank', ...right }, { name: 'Targets' }, { name: 'Bytes', ...right },
    { name: 'Status' }, { name: 'Place', class: 'once' }, { name: 'Hits', ...right }, { name: 'Last used', class: 'once' }, { name: '' }];
  const rows = shown.flatMap(([adapter, detail]) => (detail ? [adapterRow(detail), versionTable(detail)] : [adapterRow(adapter)]));
  return table(columns, rows, 'Adapters');
}

function adapterRow(adapter) {
  const { name, canary } = adapter;
  const open = opened.has(name);
  const toggle = el('button', { type: 'button', id: `versions-${name}`, 'aria-expanded': String(open), 'aria-label': `Versions of ${name}`, onclick() {
    if (!opened.delete(name)) opened.add(name);
    loadAdapters();
  } }, open ? 'Hide' : 'Versions');
  const way = adapter.pinned ? 'unpin' : 'pin';
  const pin = changeButton(`pin-${name}`, adapter.pinned ? 'Unpin' : 'Pin', `${way} ${name}`, async () => {
    await read(at('adapters', name, way), { method: 'POST' });
    return adapter.pinned ? `${name} may be evicted again.` : `${name} stays in memory.`;
  });
  const place = [adapter.residency === 'host' ? 'memory' : adapter.residency, adapter.pinned && [' ', tag('pinned')]].flat();
  const status = [statusTag(adapter.status), canary && [' ', tag(`v${canary.version} has ${canary.percent} %`)],
    adapter.smoke_test && !adapter.smoke_test.passed && [' ', tag('smoke test failed', 'bad')]].flat();
  return [[name, el('code', { title: adapter.digest }, digest(adapter.digest))], `v${adapter.version}`, number(adapter.rank), adapter.targets.join(', '),
    bytes(adapter.bytes), status, place, number(adapter.hits), ago(adapter.last_used), el('div', { class: 'row' }, toggle, pin, deleteButton(name))];
}

// A button that changes something of an adapter, and has the list read again.
function changeButton(id, text, label, work, kind = '') {
  const button = el('button', { type: 'button', id, class: kind, 'aria-label': label, onclick: () => act(button, adapterSpots(), async () => {
    const said = await work();
    if (said) await loadAdapters();
    return said;
  }) }, text);
  return button;
}

function deleteButton(name) {
  return changeButton(`delete-${name}`, 'Delete', `Delete ${name}`, async () => {
    const { versions } = await read(at('adapters', name));
    const total = versions.reduce((sum, version) => sum + version.bytes, 0);
    const list = versions.map((version) => `v${version.version}`).join(', ');
    const text = `${name} goes with ${versions.length === 1 ? 'its one version' : `all its ${versions.length} versions`} (${list}; ${bytes(total)}). `
      + 'Requests for it are refused from then on; those that run are finished.';
    if (!await confirmed(`Delete ${name}?`, text, `Delete ${name}`)) return '';
    await read(at('adapters', name), { method: 'DELETE' });
    opened.delete(name);
    return `${name} is gone.`;
  }, 'danger');
}

function versionTable(adapter) {
  const right = { class: 'number' };
  const columns = [{ name: 'Version' }, { name: 'Digest' }, { name: 'Rank', ...right }, { name: 'Bytes', ...right }, { name: 'Made', class: 'once' },
    { name: 'Status' }, { name: 'Place' }, { name: '' }];
  const newest = [...adapter.versions].sort((one, other) => other.version - one.version);
  return table(columns, newest.map((version) => versionRow(adapter, version)), `Versions of ${adapter.name}`);
}

function versionRow(adapter, version) {
  const { name, canary } = adapter;
  const id = `${name}@v${version.version}`;
  const share = canary?.version === version.version ? canary.percent : null;
  const active = version.status === 'active' && version.version === adapter.version;
  const activate = async (percent) => {
    await read(at('adapters', name, 'activate'), { method: 'POST', json: { version: version.version, ...(percent === undefined ? {} : { percent }) } });
  };
  const all = !active && changeButton(`activate-${id}`, 'Activate', `Activate ${id}`, async () => {
    await activate();
    return `${id} answers all requests.`;
  });
  const percent = el('input', { id: `percent-${id}`, type: 'number', min: '0', max: '100', step: '1', value: String(share ?? 10), 'aria-label': `Percent of the requests for ${id}` });
  const some = !active && changeButton(`share-${id}`, '% share', `Give ${id} this share`, async () => {
    await activate(Number(percent.value));
    return `${id} has ${percent.value} % of the requests.`;
  });
  const remove = changeButton(`delete-${id}`, 'Delete', `Delete ${id}`, async () => {
    const text = `${id} (${digest(version.digest)}, ${bytes(version.bytes)}) goes. ${active ? 'It is the one that answers. ' : ''}Other versions of ${name} stay; its number is not used again.`;
    if (!await confirmed(`Delete ${id}?`, text, `Delete ${id}`)) return '';
    await ask(`${at('adapters', name)}?version=${version.version}`, { method: 'DELETE' });
    return `${id} is gone.`;
  }, 'danger');
  return [`v${version.version}`, el('code', { title: version.digest }, digest(version.digest)), number(version.rank), bytes(version.bytes), time(version.created),
    [statusTag(active ? 'active' : version.status), share !== null && [' ', tag(`${share} %`)], version.read_only && [' ', tag('from the folder')]].flat(2),
    version.residency === 'host' ? 'memory' : version.residency, el('div', { class: 'row' }, all, !active && percent, some, !version.read_only && remove)];
}

// The two files of an upload, by their names or else by how these end.
const chosen = { config: null, weights: null };
const PARTS = { config: 'adapter_config.json', weights: 'adapter_model.safetensors' };

function choose(files, folder) {
  const pick = (name, end) => files.find((file) => file.name === name) ?? files.find((file) => file.name.endsWith(end));
  const found = { config: pick(PARTS.config, '.json'), weights: pick(PARTS.weights, '.safetensors') };
  for (const part of Object.keys(PARTS)) chosen[part] = found[part] ?? chosen[part];
  const line = (part) => (chosen[part] ? `${chosen[part].name} (${bytes(chosen[part].size)})` : `${PARTS[part]} is missing`);
  const odd = files.find((file) => !/\.(json|safetensors)$/.test(file.name) && files.length <= 2);
  $('files-chosen').textContent = `${line('config')}, ${line('weights')}${odd ? `; ${odd.name} is neither` : ''}`;
  if (folder && !$('upload-name').value) $('upload-name').value = folder;
}

// The files of what was dropped; of a folder those right in it.
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const folder = entries.find((entry) => entry.isDirectory);
  if (!folder) return [[...transfer.files], ''];
  const reader = folder.createReader();
  const files = [];
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!some.length) break;
    for (const entry of some.filter((entry) => entry.isFile)) files.push(await new Promise((done, failed) => entry.file(done, failed)));
  }
  return [files, folder.name];
}

// Sends an upload; progress goes to the bar. `fetch` does not tell how far it has come.
function send(name, activate, running) {
  const form = new FormData();
  for (const part of Object.keys(PARTS)) form.append(PARTS[part], chosen[part], PARTS[part]);
  const request = new XMLHttpRequest();
  running(request);
  return new Promise((done, failed) => {
    request.open('PUT', `${at('adapters', name)}${activate ? '' : '?activate=false'}`);
    for (const [header, value] of Object.entries(authorization())) request.setRequestHeader(header, value);
    request.upload.onprogress = ({ loaded, total }) => {
      $('upload-bar').value = total ? loaded / total : 0;
      $('upload-said').textContent = loaded < total ? `${bytes(loaded)} of ${bytes(total)}` : 'The server checks it.';
    };
    request.onload = () => {
      if (request.status < 300) return done([request.status, JSON.parse(request.responseText)]);
      return failed(new Refusal(request.status, request.responseText, request.getResponseHeader('x-request-id')));
    };
    request.onerror = () => failed(new Error('The connection broke off before the server had answered.'));
    request.onabort = () => failed(new Error('The upload was cancelled.'));
    request.send(form);
  });
}

async function upload() {
  note($('upload-note'));
  $('upload-said').textContent = '';
  if (!chosen.config || !chosen.weights) return note($('upload-note'), new Error('Choose both files first.'));
  $('upload-bar').value = 0;
  $('upload-bar').hidden = $('upload-cancel').hidden = false;
  const button = $('upload').querySelector('[type=submit]');
  button.disabled = true;
  try {
    const [status, adapter] = await send($('upload-name').value.trim(), $('upload-activate').checked, (request) => { $('upload-cancel').onclick = () => request.abort(); });
    $('upload-said').textContent = status === 201 ? `${adapter.name}@v${adapter.version} is there: rank ${adapter.rank}, ${adapter.status}.`
      : `These bytes were there already, as ${adapter.name}@v${adapter.version}.`;
    note($('adapters-note'));
    await loadAdapters();
  } catch (error) {
    $('upload-said').textContent = '';
    note($('upload-note'), error);
  } finally {
    button.disabled = false;
    $('upload-bar').hidden = $('upload-cancel').hidden = true;
  }
}

function wireUpload() {
  const drop = $('drop');
  const over = (event) => { event.preventDefault(); drop.classList.toggle('over', event.type === 'dragover'); };
  drop.addEventListener('dragover', over);
  drop.addEventListener('dragleave', over);
  drop.addEventListener('drop', async (event) => {
    over(event);
    try { choose(...await dropped(event.dataTransfer)); } catch (error) { note($('upload-note'), error); }
  });
  $('files').addEventListener('change', () => { choose([...$('files').files]); $('files').value = ''; });
  $('upload').addEventListener('submit', (event) => { event.preventDefault(); upload(); });
  $('adapters-reload').addEventListener('click', () => { note($('adapters-note')); $('adapters-said').textContent = ''; loadAdapters(); });
}

const adapters = { enter() { note($('adapters-note')); loadAdapters(); } };

// ---- Playground

let stopping; // Ends the answers that run.

async function loadVoices() {
  try {
    const { data } = await read('/v1/models');
    const was = new Set([...$('voices').querySelectorAll('input:checked')].map((box) => box.value));
    const chips = data.map(({ id, parent }, index) => {
      const checked = was.size ? was.has(id) : index < 2;
      return el('label', {}, el('input', { type: 'checkbox', id: `voice-${id}`, value: id, checked }), parent ? id : `${id} (base)`);
    });
    fill($('voices'), ...chips);
  } catch (error) {
    $('voices').replaceChildren();
    note($('play-note'), error);
  }
}

// The data of a stream's events, one by one.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split(/\r?\n/).filter((line) => line.startsWith('data:')).map((line) => line.slice(5).trimStart()).join('\n');
      if (data) yield data;
    }
  }
}

// Milliseconds from which on a speed is told.
const LEAST_TIME = 50;

// The card of one answer.
function card(name) {
  const fact = (title, kind = '') => {
    const value = el('dd', {}, '–');
    return [el('div', { class: kind }, el('dt', {}, title), value), value];
  };
  const [first, ttft] = fact('First token');
  const [speed, tokensPerSecond] = fact('Tokens/s');
  const [amount, tokens] = fact('Tokens');
  const [why, finish] = fact('Ended by');
  const [who, from] = fact('X-Chorus-Adapter', 'wide code');
  const text = el('pre', { class: 'live' });
  const trouble = el('div', { role: 'alert' });
  const made = el('article', { class: 'answer', 'aria-label': `Answer of ${name}` }, el('h2', {}, name), text, trouble,
    el('dl', { class: 'facts' }, first, speed, amount, why, who));
  $('answers').append(made);
  return { text, trouble, ttft, tokensPerSecond, tokens, finish, from };
}

async function answer(name, request, shown, signal) {
  const began = performance.now();
  const response = await ask('/v1/chat/completions', { method: 'POST', json: { ...request, model: name }, signal });
  shown.from.textContent = response.headers.get('x-chorus-adapter') ?? '–';
  let first = NaN;
  let latest = NaN;
  let count = 0;
  for await (const data of events(response.body)) {
    if (data === '[DONE]') return;
    const { choices, usage, error } = JSON.parse(data);
    if (error) throw Object.assign(new Error(error.message), { code: error.code });
    for (const { delta, finish_reason: reason } of choices) {
      if (delta.content) {
        latest = performance.now();
        if (!first) { first = latest; shown.ttft.textContent = seconds((first - began) / 1000); }
        count += 1;
        shown.text.append(delta.content);
      }
      if (reason) shown.finish.textContent = reason;
    }
    if (usage) count = usage.completion_tokens;
    shown.tokens.textContent = number(count);
    // What comes in one read, or nearly so, says nothing of how fast it was made.
    if (latest - first >= LEAST_TIME) shown.tokensPerSecond.textContent = rate(((count - 1) * 1000) / (latest - first));
  }
  throw new Error('The stream broke off.');
}

// One answer to its end, whatever that is, in words.
async function run(name, request, signal) {
  const shown = card(name);
  try {
    await answer(name, request, shown, signal);
    return `${name}: ${shown.tokens.textContent} tokens, ${shown.finish.textContent}.`;
  } catch (error) {
    if (signal.aborted) {
      shown.finish.textContent = 'you';
      return `${name} was stopped.`;
    }
    note(shown.trouble, error);
    return `${name} was refused or failed.`;
  } finally {
    shown.text.classList.remove('live');
  }
}

// What is asked of each; fields that were left empty are the server's to fill.
function question() {
  const request = { messages: [{ role: 'user', content: $('prompt').value }], stream: true, stream_options: { include_usage: true } };
  for (const [field, id] of [['temperature', 'temperature'], ['max_tokens', 'max-tokens'], ['seed', 'seed']]) {
    if ($(id).value !== '') request[field] = Number($(id).value);
  }
  return request;
}

async function play() {
  note($('play-note'));
  const boxes = [...$('voices').querySelectorAll('input:checked')].map((box) => box.value);
  const names = [...new Set([...boxes, ...$('others').value.split(/\s+/).filter(Boolean)])];
  if (!names.length) return note($('play-note'), new Error('Choose who is to answer.'));
  stopping = new AbortController();
  const { signal } = stopping;
  const button = $('play').querySelector('[type=submit]');
  button.disabled = true;
  $('stop').disabled = false;
  $('play-said').textContent = `${plural(names.length, 'answer')} on the way.`;
  $('answers').replaceChildren();
  const request = question();
  const ends = await Promise.all(names.map((name) => run(name, request, signal)));
  $('play-said').textContent = ends.join(' ');
  button.disabled = false;
  $('stop').disabled = true;
}

function wirePlay() {
  $('play').addEventListener('submit', (event) => { event.preventDefault(); play(); });
  $('stop').addEventListener('click', () => stopping?.abort());
  $('prompt').addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) $('play').requestSubmit();
  });
}

const playground = { enter() { note($('play-note')); loadVoices(); } };

// ---- Tenants

const unfolded = new Set();
const tenantSpots = () => [$('tenants-note'), $('tenants-said')];
const QUOTA = {
  requests_per_minute: 'Requests a minute', tokens_per_minute: 'Tokens a minute', concurrent: 'Requests at once', uploads_per_minute: 'Uploads a minute',
  adapters: 'Adapters stored', stored_bytes: 'Bytes stored', resident_min_bytes: 'Memory kept for it, bytes', resident_max_bytes: 'Memory at most, bytes',
};

async function loadTenants() {
  try {
    const [tenants, usage] = await Promise.all([read('/v1/admin/tenants'), read('/v1/admin/usage?by=total')]);
    const used = new Map();
    for (const row of usage.data) {
      const sum = used.get(row.tenant) ?? { requests: 0, prompt_tokens: 0, cached_tokens: 0, generated_tokens: 0, uploads: 0, upload_bytes: 0 };
      for (const field of Object.keys(sum)) sum[field] += row[field];
      used.set(row.tenant, sum);
    }
    fill($('tenants-list'), ...tenants.data.map((tenant) => tenantPanel(tenant, used.get(tenant.name))));
    $('tenant-new').hidden = false;
  } catch (error) {
    if (error.status === 403) error.hint = 'Type the operator\'s key above.';
    $('tenants-list').replaceChildren();
    $('tenant-new').hidden = true;
    note($('tenants-note'), error);
  }
}

const post = (json) => ({ method: 'POST', json });

// A form that changes something of a tenant, and has the list read again.
function changeForm(button, parts, work) {
  return el('form', { onsubmit(event) {
    event.preventDefault();
    act(button, tenantSpots(), async () => {
      const said = await work();
      await loadTenants();
      return said;
    });
  } }, parts);
}

function fold(id, title, ...children) {
  return el('details', { open: unfolded.has(id), ontoggle(event) {
    if (event.target.open) unfolded.add(id);
    else unfolded.delete(id);
  } }, el('summary', { id }, title), children);
}

function tenantPanel(tenant, used) {
  const fact = (title, value) => el('div', {}, el('dt', {}, title), el('dd', {}, value));
  const facts = [fact('Requests', number(used?.requests ?? 0)), fact('Prompt tokens', number(used?.prompt_tokens ?? 0)),
    fact('of them cached', number(used?.cached_tokens ?? 0)), fact('Generated tokens', number(used?.generated_tokens ?? 0)),
    fact('Uploads', `${number(used?.uploads ?? 0)} (${bytes(used?.upload_bytes ?? 0)})`)];
  const bounds = Object.entries(QUOTA).filter(([field]) => tenant.quota[field] !== null)
    .map(([field, title]) => `${title.toLowerCase()}: ${number(tenant.quota[field])}`);
  const made = tenant.created ? `made ${time(tenant.created)}` : 'always there';
  return el('article', { class: 'panel tenant', 'aria-label': tenant.name },
    el('div', { class: 'heading' }, el('h2', {}, tenant.name), el('p', { class: 'soft' }, made)),
    el('dl', { class: 'facts' }, facts),
    fold(`keys-${tenant.name}`, plural(tenant.keys.length, 'key'), keyTable(tenant), keyForm(tenant)),
    fold(`default-${tenant.name}`, `Default adapter: ${tenant.default_adapter ?? 'the base'}`, defaultForm(tenant)),
    fold(`quota-${tenant.name}`, `Quota: ${bounds.length ? bounds.join(', ') : 'without bound'}`, quotaForm(tenant)));
}

function keyTable(tenant) {
  if (!tenant.keys.length) return null;
  const rows = tenant.keys.map(({ id, scope, created, expires }) => {
    const revoke = el('button', { type: 'button', class: 'danger', 'aria-label': `Revoke ${id}`, onclick: () => act(revoke, tenantSpots(), async () => {
      const text = `The key ${id} of ${tenant.name} (scope ${scope}) is none any more: whoever uses it is refused from then on.`;
      if (!await confirmed('Revoke this key?', text, 'Revoke it')) return '';
      await read(at('admin', 'tenants', tenant.name, 'keys', id), { method: 'DELETE' });
      await loadTenants();
      return `The key ${id} is revoked.`;
    }) }, 'Revoke');
    return [el('code', {}, id), scope, time(created), expires ? time(expires) : 'never', el('div', { class: 'row' }, revoke)];
  });
  return table([{ name: 'Key' }, { name: 'Scope' }, { name: 'Made' }, { name: 'Expires' }, { name: '' }], rows, `Keys of ${tenant.name}`);
}

function keyForm(tenant) {
  const scope = el('select', {}, ['infer', 'upload', 'admin'].map((name) => el('option', { value: name }, name)));
  const expires = el('input', { type: 'datetime-local' });
  const button = el('button', { id: `key-new-${tenant.name}` }, 'New key');
  const parts = el('div', { class: 'fields' }, el('label', {}, 'Scope', scope), el('label', {}, 'Expires (empty: never)', expires), button);
  return changeForm(button, parts, async () => {
    const until = expires.value ? Math.floor(new Date(expires.value).getTime() / 1000) : null;
    const made = await read(at('admin', 'tenants', tenant.name, 'keys'), post({ scope: scope.value, expires: until }));
    secret(`New key of ${tenant.name}, scope ${made.scope}`, made.key);
    return `${tenant.name} has a new key.`;
  });
}

function defaultForm(tenant) {
  const name = el('input', { autocomplete: 'off', spellcheck: 'false', value: tenant.default_adapter ?? '', placeholder: 'the base' });
  const button = el('button', { id: `default-set-${tenant.name}` }, 'Set');
  return changeForm(button, el('div', { class: 'fields' }, el('label', {}, 'Adapter that "default" means', name), button), async () => {
    const adapter = name.value.trim() || null;
    await read(at('admin', 'tenants', tenant.name, 'default'), post({ adapter }));
    return `"default" means ${adapter ?? 'the base'} to ${tenant.name}.`;
  });
}

function quotaForm(tenant) {
  const inputs = Object.entries(QUOTA).map(([field, title]) => {
    const value = tenant.quota[field];
    return [field, title, el('input', { type: 'number', min: '0', step: '1', value: value === null ? '' : String(value), placeholder: 'no bound' })];
  });
  const button = el('button', { id: `quota-set-${tenant.name}` }, 'Set quota');
  const labels = el('div', { class: 'quota' }, inputs.map(([, title, input]) => el('label', {}, title, input)));
  return changeForm(button, [labels, button], async () => {
    const quota = Object.fromEntries(inputs.map(([field, , input]) => [field, input.value === '' ? null : Number(input.value)]));
    await read(at('admin', 'tenants', tenant.name, 'quota'), post(quota));
    return `${tenant.name} has its new quota.`;
  });
}

async function copy(field, button) {
  try {
    await navigator.clipboard.writeText(field.value);
    button.textContent = 'Copied';
  } catch {
    // Browsers have no clipboard for pages that came without TLS.
    field.select();
    button.textContent = 'Selected: copy it';
  }
}

// A secret, which the server shows this once; it stays until it is put away.
function secret(title, value, use) {
  const field = el('input', { readonly: '', value, 'aria-label': title });
  const button = el('button', { type: 'button', class: 'main', onclick: () => copy(field, button) }, 'Copy');
  const made = el('div', { class: 'note' }, el('strong', {}, title), el('p', {}, 'It is shown this once: keep it now.'),
    el('div', { class: 'secret' }, field, button, use && el('button', { type: 'button', onclick: (event) => { event.target.remove(); use(); } }, 'Use it here'),
      el('button', { type: 'button', class: 'quiet', onclick: () => made.remove() }, 'Put away')));
  $('secrets').append(made);
  made.scrollIntoView({ block: 'nearest' });
}

function wireTenants() {
  $('tenant-new').addEventListener('submit', (event) => {
    event.preventDefault();
    act($('tenant-new').querySelector('button'), tenantSpots(), async () => {
      const made = await read('/v1/admin/tenants', post({ name: $('tenant-name').value.trim() }));
      $('tenant-name').value = '';
      // From the first tenant on the server asks for keys.
      if (made.operator_key) secret('The operator\'s key: from now on this server asks for keys', made.operator_key, () => useKey(made.operator_key));
      else await loadTenants();
      return `${made.name} is there.`;
    });
  });
  $('tenants-reload').addEventListener('click', () => { note($('tenants-note')); $('tenants-said').textContent = ''; loadTenants(); });
}

const tenants = { enter() { note($('tenants-note')); loadTenants(); }, leave() { $('secrets').replaceChildren(); } };

// ---- The whole

const PAGES = { overview, adapters, playground, tenants };
let page;

function show(moved) {
  const asked = location.hash.replace(/^#\/?/, '');
  if (asked === 'main') return;
  PAGES[page]?.leave?.();
  page = Object.hasOwn(PAGES, asked) ? asked : 'overview';
  for (const name of Object.keys(PAGES)) $(`page-${name}`).hidden = name !== page;
  for (const link of document.querySelectorAll('nav a')) {
    if (link.hash === `#/${page}`) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  const heading = $(`page-${page}`).querySelector('h1');
  document.title = `${heading.textContent} · chorus`;
  if (moved) heading.focus({ preventScroll: true });
  PAGES[page].enter();
}

function showKey() {
  $('key-forget').hidden = !key();
  $('key').classList.toggle('kept', Boolean(key()));
  $('key').placeholder = key() ? `in use (…${key().slice(-4)})` : 'none';
  $('key-state').textContent = key() ? 'A key is in use until this tab is closed.' : 'No key is in use.';
}

// Everything is asked again with another key.
function useKey(value) {
  if (/[^\x21-\x7e]/.test(value)) return $('key').setCustomValidity('A key has no such characters'), $('key').reportValidity();
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
  $('key').value = '';
  stopping?.abort();
  samples.length = 0;
  opened.clear();
  $('adapters-said').textContent = $('tenants-said').textContent = $('upload-said').textContent = '';
  note($('upload-note'));
  showKey();
  // Secrets that are being shown stay.
  if (page === 'tenants') tenants.enter();
  else show(false);
}

$('key-form').addEventListener('submit', (event) => { event.preventDefault(); useKey($('key').value.trim()); });
$('key').addEventListener('input', () => $('key').setCustomValidity(''));
$('key-forget').addEventListener('click', () => useKey(''));
addEventListener('hashchange', () => show(true));
wireUpload();
wirePlay();
wireTenants();
showKey();
show(false);
read('/version').then(({ version }) => { $('version').textContent = version; }, () => {});
