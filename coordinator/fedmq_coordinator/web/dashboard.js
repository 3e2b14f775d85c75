// Adds to a page that is whole without it: charts, the fleet in full, relative times, and what is new as it happens.
import { FleetTable } from "./fleet.js";

const main = document.getElementById("main");
const task = main.dataset.task ?? "";
const { bytes, draw } = window.fedmqCharts;
const STALE = "the page could not be brought up to date";

const address = (path, more = {}) => `${path}?${new URLSearchParams({ ...(task ? { task } : {}), ...more })}`;

async function get(path, more) {
  const answer = await fetch(address(path, more), { headers: { accept: "application/json" } });
  if (answer.status === 401) location.reload(); // the session is over
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

// -- for people ------------------------------------------------------------------------------------------------

function ago(at, now = Date.now() / 1000) {
  const seconds = Math.max(0, now - at);
  for (const [length, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= 2 * length || (unit !== "d" && seconds >= length)) return `${Math.floor(seconds / length)} ${unit} ago`;
  }
  return seconds < 5 ? "just now" : `${Math.floor(seconds)} s ago`;
}

function count(number) {
  return number.toLocaleString("en");
}

// As money.amount has it: two digits that count, however little it is.
function amount(value, currency) {
  const size = Math.abs(value);
  if (size === 0 || size >= 0.0995) return `${value.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 })} ${currency}`;
  if (size < 0.000001) return `less than 0.000001 ${currency}`;
  return `${value.toFixed(1 - Math.floor(Math.log10(size)))} ${currency}`;
}

function tellTimes() {
  for (const time of document.querySelectorAll("time[data-at]")) {
    time.title ||= time.textContent;
    const text = ago(Number(time.dataset.at));
    if (time.textContent !== text) time.textContent = text;
  }
}

// -- theme -----------------------------------------------------------------------------------------------------

function makeThemeSwitch() {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const now = () => root.dataset.theme ?? (dark.matches ? "dark" : "light");
  const name = () => { button.textContent = now() === "dark" ? "Light" : "Dark"; };
  button.addEventListener("click", () => {
    root.dataset.theme = now() === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("fedmq-theme", root.dataset.theme);
    } catch {
      // storage is off: the choice holds for this page
    }
    name();
  });
  dark.addEventListener("change", name);
  name();
}

// -- the overview ----------------------------------------------------------------------------------------------

const charts = {};

function drawCharts({ rounds, metric_name, raw_bytes }) {
  const x = rounds.id;
  const wanted = {
    metric: {
      title: "What was learnt", unit: "", x,
      series: [
        { label: metric_name, values: rounds.metric, colour: "metric", digits: 3 },
        { label: "loss", values: rounds.loss, kind: "dashed", axis: "right", colour: "loss", digits: 3 },
      ],
    },
    cumulative: {
      title: "Bytes so far", unit: "bytes", log: true, x,
      series: [
        { label: "wire up", values: rounds.cumulative_up, colour: "up" },
        { label: "wire down", values: rounds.cumulative_down, colour: "down" },
        { label: "dense float32", values: rounds.cumulative_dense, kind: "dashed", colour: "dense" },
        { label: "raw signal, once", values: x.map(() => raw_bytes), kind: "dotted", colour: "raw" },
      ],
    },
    round: {
      title: "Bytes of each round", unit: "bytes", from: "zero", x,
      series: [
        { label: "wire up", values: counted(rounds.wire_up), kind: "bars", colour: "up" },
        { label: "wire down", values: counted(rounds.wire_down), kind: "bars", colour: "down" },
      ],
    },
  };
  for (const [name, one] of Object.entries(wanted)) {
    const place = document.getElementById(`chart-${name}`);
    if (!place) continue;
    if (charts[name]) charts[name].update(one);
    else charts[name] = draw(place, one);
  }
}

// Of a round in which nothing was counted yet: gateways tell a round's bytes with their next answer.
function counted(counts) {
  return counts.map((count) => count || null);
}

function cell(field, value) {
  const found = value(field);
  switch (field) {
    case "last_seen": return ago(found);
    case "up": case "down": return bytes(found);
    case "dense": {
      const wire = value("up") + value("down");
      return found && wire ? factor(found / wire) : "";
    }
    case "battery": case "link": return found === "" ? "–" : found ?? "not told";
    default: return typeof found === "number" ? (found ? count(found) : "") : found ?? "";
  }
}

function factor(value) {
  return `${value >= 99.5 ? Math.round(value).toLocaleString("en") : value.toFixed(1)} ×`;
}

// A price of one's own, for this browser alone: the settings have the plant's.
function makePrice() {
  const place = document.getElementById("per-gb");
  if (!place || place.tagName === "INPUT") return;
  const input = document.createElement("input");
  Object.assign(input, { type: "number", id: "per-gb", min: "0", step: "any", value: price() });
  input.setAttribute("aria-label", `Price of a gigabyte in ${main.dataset.currency}`);
  input.addEventListener("input", () => {
    const chosen = Number(input.value);
    if (!(chosen >= 0) || input.value === "") return;
    sessionStorage.setItem("fedmq-per-gb", input.value);
    tellWorth();
  });
  place.replaceWith(input);
}

function price() {
  const own = sessionStorage.getItem("fedmq-per-gb");
  return own === null ? main.dataset.price : own;
}

let latest = null;

function tellWorth() {
  if (!latest) return;
  const worth = (saving) => amount((Math.abs(saving.saved) / 1e9) * Number(price()), main.dataset.currency);
  const strong = document.getElementById("worth-dense");
  if (strong && latest.savings[0].saved !== null) strong.textContent = worth(latest.savings[0]);
  for (const saving of latest.savings) {
    const part = document.querySelector(`[data-card="${saving.against}"] .worth`);
    if (part && saving.saved !== null) part.textContent = worth(saving);
  }
}

function tellRound(event) {
  const place = document.getElementById("open-round");
  if (!place) return;
  if (event.closed_at === null) {
    const done = event.accepted + event.declined + event.refused;
    const text = `${count(done)} of ${count(event.drawn)} asked have answered: ${count(event.accepted)} of use, ${count(event.declined)} declined`;
    const line = document.createElement("p");
    const name = document.createElement("strong");
    name.textContent = `Round ${count(event.id)} is open. `;
    line.append(name, text);
    const progress = Object.assign(document.createElement("progress"), { max: Math.max(1, event.drawn), value: done });
    progress.setAttribute("aria-label", "answers");
    place.replaceChildren(line, progress);
    place.dataset.id = event.id;
    return;
  }
  if (place.dataset.id === String(event.id)) place.replaceChildren();
  tellClosed(event);
}

const told = new Map(); // of rounds that have closed since the page was loaded, what there is to say

function tellClosed(event) {
  const metric = event.metric === null ? "" : `${latest?.metric_name ?? "metric"} ${event.metric.toFixed(3)}`;
  const parts = [`${count(event.accepted)} of ${count(event.drawn)}`, metric, event.outcome === "applied" ? "" : event.outcome].filter(Boolean);
  const known = told.get(event.id);
  if (known?.join() === parts.join() || !(event.closed_at > loadedAt)) return;
  told.set(event.id, parts);
  listLatest();
  if (!known) document.getElementById("news").textContent = `Round ${event.id} has closed: ${parts.join(", ")}.`;
}

// The list as the server made it, with what has closed since: the newest six.
function listLatest() {
  const list = document.getElementById("latest");
  const number = (line) => Number(line.firstElementChild.textContent.replace(/\D/g, ""));
  const lines = new Map([...list.children].map((line) => [number(line), line]));
  const made = Math.max(0, ...[...lines].filter(([, line]) => !line.dataset.told).map(([id]) => id));
  for (const [id, parts] of told) {
    if (id <= made || lines.get(id)?.dataset.told === parts.join()) continue;
    const line = document.createElement("li");
    line.className = lines.has(id) ? "" : "new";
    line.dataset.told = parts.join();
    const link = document.createElement("a");
    link.href = address("/round", { id });
    link.textContent = `Round ${count(id)}`;
    line.append(link, ...parts.map((part) => Object.assign(document.createElement("span"), { textContent: part })));
    lines.set(id, line);
  }
  const newest = [...lines].sort(([a], [b]) => b - a).slice(0, 6).map(([, line]) => line);
  if (newest.some((line, place) => list.children[place] !== line)) list.replaceChildren(...newest);
  while (told.size > 50) told.delete(told.keys().next().value);
}

let loadedAt = Infinity; // by the coordinator's clock
let fleet = null;

// What stands in the page as text comes from the server as it makes it: one place says how figures read.
const PARTS = [".hero", "#latest", "#alerts", "#machines", "#declines", "#rounds .scroll", "#words ul"];

async function refresh() {
  const [about, rows, answer] = await Promise.all([get("/api/overview"), fleet ? get("/api/fleet") : null, fetch(address("/"))]);
  latest = about;
  if (answer.ok) renew(new DOMParser().parseFromString(await answer.text(), "text/html"));
  drawCharts(about);
  if (rows) fleet.set(rows);
  await alerts();
  tellTimes();
}

// Where somebody types, or has typed, or reads on with the keyboard, nothing is taken away.
function isInUse(part) {
  const typed = [...part.querySelectorAll(".verdict input")].some(
    (input) => input.value !== input.defaultValue || input.checked !== input.defaultChecked,
  );
  return typed || part.contains(document.activeElement);
}

const said = new Map(); // of each part, what the server said last

function renew(page) {
  if (page.getElementById("main")?.dataset.kind !== "overview") location.reload();
  if (!document.getElementById("chart-metric") && page.getElementById("chart-metric")) location.reload(); // the first round
  for (const part of PARTS) {
    const [old, young] = [document.querySelector(part), page.querySelector(part)];
    if (old && young && !isInUse(old) && said.get(part) !== young.innerHTML) {
      said.set(part, young.innerHTML);
      old.replaceWith(document.adoptNode(young));
    }
  }
  listLatest();
  makePrice();
  tellWorth();
}

let waiting = null;
let pause = 150; // milliseconds; a page that takes long to bring up to date is brought up less often

function soon() {
  waiting ??= setTimeout(async () => {
    const began = performance.now();
    try {
      await refresh();
    } catch (error) {
      tellState("", STALE, error);
    }
    pause = Math.max(150, 2 * (performance.now() - began));
    waiting = null;
  }, pause);
}

function tellState(kind, text, error) {
  const live = document.getElementById("live");
  live.className = `pill ${kind}`;
  live.textContent = text;
  if (error) console.info(String(error));
}

function follow() {
  let events = null;
  const open = () => {
    events = new EventSource(address("/api/events"));
    events.addEventListener("open", () => tellState("live", "live"));
    events.addEventListener("error", () => tellState("", "not connected: trying again"));
    events.addEventListener("round", ({ data }) => {
      const event = JSON.parse(data);
      if (event.task === task) tellRound(event);
    });
    events.addEventListener("fresh", ({ data }) => {
      if (JSON.parse(data).task === task) soon();
    });
  };
  // A page that nobody looks at asks for nothing: browsers keep few connections to one host.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      events?.close();
      events = null;
    } else if (!events) {
      open();
      soon();
    }
  });
  addEventListener("pagehide", () => events?.close());
  if (!document.hidden) open();
}

async function overview() {
  const section = document.getElementById("fleet-section");
  fleet = new FleetTable(section, { cell, link: (name) => address("/gateway", { name }) });
  const [about, rows] = await Promise.all([get("/api/overview"), get("/api/fleet")]);
  latest = about;
  fleet.set(rows);
  drawCharts(about);
  makePrice();
  tellWorth();
  loadedAt = about.at;
  await alerts();
  follow();
}

// -- one gateway -----------------------------------------------------------------------------------------------

async function gateway() {
  const view = await get("/api/gateway", { name: main.dataset.name });
  const place = document.getElementById("chart-gateway-bytes");
  const answers = view.answers.filter((answer) => answer.wire !== null);
  if (!answers.length) {
    place.textContent = "No bytes are told yet.";
    return;
  }
  draw(place, {
    title: "Bytes of each round", unit: "bytes", x: answers.map((answer) => answer.round),
    series: [
      { label: "wire up", values: answers.map((answer) => answer.wire.up), kind: "bars", colour: "up" },
      { label: "wire down", values: answers.map((answer) => answer.wire.down), kind: "bars", colour: "down" },
    ],
  });
}

// -- alerts ----------------------------------------------------------------------------------------------------

const trends = new Map();

function drawTrends(alerts) {
  const of = new Map(alerts.map((alert) => [alert.place, alert.evidence.find((one) => one.trend.length)]));
  for (const place of document.querySelectorAll("[data-trend]")) {
    const one = of.get(place.dataset.trend);
    if (!one || place.childElementCount) continue;
    const x = one.trend.map(([at]) => at);
    const level = (value) => x.map(() => value);
    trends.get(place.dataset.trend)?.destroy();
    trends.set(place.dataset.trend, draw(place, {
      title: `${one.name} before the alert`, unit: one.unit, time: true, height: 170, x,
      series: [
        { label: one.name, values: one.trend.map(([, value]) => value), colour: "up" },
        { label: "limit", values: level(one.limit), kind: "dashed", colour: "warn" },
        ...(one.was === null ? [] : [{ label: "was", values: level(one.was), kind: "dotted", colour: "dense" }]),
      ],
    }));
  }
}

async function alerts() {
  if (!document.querySelector("[data-trend]")) return;
  const { waiting, decided } = await get("/api/alerts");
  drawTrends([...waiting, ...decided]);
}

async function machine() {
  const [, gateway, name] = main.dataset.name.match(/^([^/]*)\/(.*)$/s);
  drawTrends((await get("/api/machine", { gateway, name })).alerts);
}

makeThemeSwitch();
tellTimes();
setInterval(tellTimes, 5000);
const kinds = { overview, gateway, machine };
await kinds[main.dataset.kind]?.().catch((error) => console.info(String(error)));
document.documentElement.dataset.ready = "true";
