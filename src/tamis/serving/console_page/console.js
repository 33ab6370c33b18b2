// The console. Whatever came over the wire reaches the page as text, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const POLL_MS = 2000;
const PAGE = 10;
const EXPERIMENT_TURNS = 5;
const FEWEST_POSITIVES = 25;

// ---------------------------------------------------------------- elements and numbers

/** An element with properties and children; texts become text nodes. */
function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null));
  return node;
}

function draw(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const whole = new Intl.NumberFormat("en");

/** Three significant digits, however large or small. */
function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value !== 0 && Math.abs(value) < 1e-4) return value.toExponential(1);
  if (Math.abs(value) >= 1e6) return Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(value);
  return Intl.NumberFormat("en", { maximumSignificantDigits: Math.abs(value) >= 1000 ? 5 : 3 }).format(value);
}

/** A format with one number of decimals for a whole column, so that its points stand in a line. */
function column(values, digits = 3) {
  const known = values.filter((value) => value !== null);
  const largest = Math.max(...known.map(Math.abs), 0);
  const decimals = largest > 0 ? Math.min(8, Math.max(0, digits - 1 - Math.floor(Math.log10(largest)))) : 0;
  const format = new Intl.NumberFormat("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
  return (value) => (value === null ? "–" : format.format(value).replace(/^-/, "−"));
}

const ms = (value) => (value === null ? "–" : `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ms`);
const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0)} %`);

function span(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

// ---------------------------------------------------------------- the server

/** The answer's body; an Error with the server's own words where it refuses. */
async function ask(method, path, body) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if ($("token").value) headers.Authorization = `Bearer ${$("token").value}`;
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Error("The server cannot be reached.");
  }
  if (answer.status === 204) return null;
  const found = await answer.json();
  if (!answer.ok) throw new Error(`${found.error.field}: ${found.error.message}`);
  return found;
}

// ---------------------------------------------------------------- fields of a request or an ad

let about = null;

function fields(parent, columns) {
  parent.hidden = columns.length === 0;
  parent.replaceChildren(parent.querySelector("legend"));
  for (const item of columns) {
    const input = make("input", { name: item.name, maxLength: 10000 });
    if (item.kind === "number") input.inputMode = "decimal";
    if (item.kind === "categories") input.placeholder = "a, b, c";
    if (item.is_from_events) input.placeholder = "from events";
    const label = make("label", {}, item.name.replaceAll("_", " "), input);
    if (item.values.length) {
      const list = make("datalist", { id: `${parent.id}-${item.name}` }, ...item.values.map((value) => make("option", { value })));
      input.setAttribute("list", list.id);
      label.append(list);
    }
    parent.append(label);
  }
}

/** What was typed, by column; what was left empty is missing. */
function typed(parent, columns) {
  const row = {};
  for (const item of columns) {
    const text = parent.querySelector(`input[name="${CSS.escape(item.name)}"]`).value.trim();
    if (text === "") continue;
    // A number that is none goes out as it was typed, and the server says what is wrong with it.
    if (item.kind === "number") row[item.name] = Number.isFinite(Number(text)) ? Number(text) : text;
    else if (item.kind === "categories") row[item.name] = text.split(",").map((part) => part.trim());
    else row[item.name] = text;
  }
  return row;
}

async function learn() {
  const found = await ask("GET", "/v1/about");
  const is_new = about === null || about.release !== found.release;
  about = found;
  $("token-form").hidden = !found.needs_token;
  $("release").textContent = found.release.slice(0, 12);
  $("release").title = found.release;
  $("ads-count").textContent = whole.format(found.ads);
  if (!is_new) return;
  fields($("user-fields"), found.user);
  fields($("context-fields"), found.context);
  fields($("add-fields"), found.ad);
}

// ---------------------------------------------------------------- funnel and winners

async function rank(event) {
  event.preventDefault();
  $("ask-problem").textContent = "";
  const user = $("user").value.trim();
  try {
    if (about === null) await learn();
    const answer = await ask("POST", "/v1/rank", {
      user: { id: user === "" ? null : user, features: typed($("user-fields"), about.user) },
      context: typed($("context-fields"), about.context),
      k: Number($("slots").value),
      trace: true,
    });
    showFunnel(answer);
    showWinners(answer);
  } catch (problem) {
    $("ask-problem").textContent = problem.message;
  }
}

function showFunnel(answer) {
  const stages = answer.trace;
  const total = stages.length ? stages[0].candidates_in : 0;
  // A bar is as long as a logarithm, or the last stages would be dots beside the first.
  const width = (count) => `${(100 * Math.log1p(count)) / Math.log1p(Math.max(total, 1))}%`;
  const heads = [["stage", ""], ["kept", "middle"], ["", "n"], ["their scores, best first", "scores"], ["time", "n"]];
  const rows = [make("div", { className: "row heads" }, ...heads.map(([text, className]) => make("span", { className }, text)))];
  rows.push(stageRow({ name: "may be shown", count: total, width: width(total) }));
  for (const stage of stages) {
    const row = stageRow({
      name: stage.name, count: stage.candidates_out, width: width(stage.candidates_out),
      scores: stage.scores, time: stage.elapsed_ms, kept: stage.ads, fallback: stage.fallback,
    });
    rows.push(row);
  }
  rows.push(stageRow({ name: "shown", count: answer.ads.length, width: width(answer.ads.length), is_last: true }));
  $("stages").replaceChildren(...rows);
  const spent = stages.reduce((sum, stage) => sum + stage.elapsed_ms, 0);
  $("funnel-time").textContent = `stages took ${ms(spent)}`;
}

function stageRow({ name, count, width, scores = [], time = null, kept = null, fallback = "", is_last = false }) {
  const bar = make("div", { className: "bar" });
  bar.style.width = width;
  const cells = [
    make("span", { className: "name" }, name),
    bar,
    make("span", { className: "n" }, whole.format(count)),
    scores.length ? sparkline(scores) : make("span", { className: "spark" }),
    make("span", { className: "n small" }, time === null ? "" : ms(time)),
  ];
  const head = make(kept === null ? "div" : "summary", { className: "row" }, ...cells);
  if (kept === null) return make("div", { className: is_last ? "stage shown" : "stage" }, head);
  const format = column(scores);
  const list = kept.slice(0, 30).map((ad, at) => make("li", {}, make("span", {}, format(scores[at])), ad));
  const why = fallback ? make("p", { className: "fell-why" }, `kept the order of the stage before: ${fallback}`) : null;
  return make("details", { className: fallback ? "stage fell" : "stage" }, head, why, make("ol", { className: "kept" }, ...list));
}

/** Scores of what a stage kept, best first. */
function sparkline(scores) {
  const [top, low] = [Math.max(...scores), Math.min(...scores)];
  const x = (at) => (scores.length > 1 ? (86 * at) / (scores.length - 1) : 43);
  const y = (score) => (top > low ? 4 + (16 * (top - score)) / (top - low) : 12);
  const points = scores.map((score, at) => `${x(at).toFixed(1)},${y(score).toFixed(1)}`).join(" ");
  const text = `scores from ${short(top)} to ${short(low)}`;
  return draw("svg", { class: "spark", viewBox: "0 0 136 24", role: "img", "aria-label": text },
    draw("title", {}, text), draw("polyline", { class: "line", points }),
    draw("text", { x: 94, y: 16 }, short(top)));
}

/** bid x p(event that is billed) earns; what quality and penalties add makes it the value. */
function showWinners(answer) {
  const ads = answer.ads;
  const tasks = ads.length ? Object.keys(ads[0].probabilities) : [];
  const parts = ads.map((ad) => {
    const p = ad.probabilities;
    const billed = ad.billing === "conversion" ? p.click * p.conversion : p.click;
    const earns = Number.isFinite(billed) ? ad.bid * billed : null;
    return { earns, other: earns === null || ad.value === null ? null : ad.value - earns };
  });
  const head = [["", "n"], ["ad", ""], ["value", "n"], ["", "op"], ["bid × P(paid)", "n"], ["", "op"], ["quality, penalties", "n"], ["bid", "n"], ["pays for", ""],
    ...tasks.map((task) => [`P(${task})`, "n"]), ["price", "n"]];
  $("winners-head").replaceChildren(...head.map(([text, className]) => make("th", { scope: "col", className }, text)));
  const value = column(ads.map((ad) => ad.value));
  const earns = column(parts.map((part) => part.earns));
  const others = parts.map((part) => part.other === null || Math.abs(part.other) < 1e-9 ? part.other && 0 : part.other);
  const [other, bid, price] = [column(others), column(ads.map((ad) => ad.bid)), column(ads.map((ad) => ad.price))];
  const probability = Object.fromEntries(tasks.map((task) => [task, column(ads.map((ad) => ad.probabilities[task]))]));
  const best = Math.max(...ads.map((ad) => ad.value ?? 0), 0);
  $("winners-body").replaceChildren(...ads.map((ad, at) => {
    const gauge = make("span", { className: "gauge" });
    gauge.style.width = best > 0 ? `${Math.max(0, (100 * (ad.value ?? 0)) / best)}%` : "0";
    return make("tr", {},
      cell(String(at + 1), "n small"), cell(ad.ad, "strong"),
      make("td", { className: "n strong" }, value(ad.value), gauge),
      cell("=", "op"), cell(earns(parts[at].earns), "n"),
      cell("+", "op"), cell(other(others[at]), "n"),
      cell(bid(ad.bid), "n"), cell(ad.billing, ""),
      ...tasks.map((task) => cell(probability[task](ad.probabilities[task]), "n")),
      cell(price(ad.price), "n"));
  }));
  $("winners-empty").hidden = ads.length > 0;
  $("winners-empty").textContent = "No ad may be shown for this request.";
}

const cell = (text, className) => make("td", { className }, text);

// ---------------------------------------------------------------- charts

const [LEFT, RIGHT, TOP, BOTTOM] = [38, 6, 8, 20];

/**
 * Lines over time. `lines` holds {points: [[x in 0 to 1, y or null], ...], kind}; `around` is a
 * value that is right, and stays in sight.
 */
function chart(svg, { lines, format, from, to = "now", around = null, label }) {
  const [width, height] = [svg.clientWidth || 300, svg.clientHeight || 130];
  const values = lines.flatMap((line) => line.points.map(([, y]) => y)).filter((y) => y !== null);
  const least = around === null ? [0, 0] : [around * 0.95, around * 1.05];
  const steps = roundSteps(Math.min(...values, least[0]), Math.max(...values, least[1]));
  const [low, high] = [steps[0], steps.at(-1)];
  const x = (at) => LEFT + at * (width - LEFT - RIGHT);
  const y = (value) => TOP + ((high - value) / (high - low)) * (height - TOP - BOTTOM);
  const nodes = [draw("title", {}, label)];
  for (const value of steps) {
    nodes.push(draw("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      draw("text", { x: LEFT - 7, y: y(value) + 4, "text-anchor": "end" }, format(value)));
  }
  if (around !== null) nodes.push(draw("line", { class: "right", x1: LEFT, x2: width - RIGHT, y1: y(around), y2: y(around) }));
  nodes.push(draw("text", { x: LEFT, y: height - 3 }, from), draw("text", { x: width - RIGHT, y: height - 3, "text-anchor": "end" }, to));
  for (const line of lines) {
    for (const run of runs(line.points)) {
      const points = run.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`);
      if (line.kind === "area") {
        const floor = y(Math.max(low, 0)).toFixed(1);
        nodes.push(draw("polygon", { class: "area", points: `${x(run[0][0]).toFixed(1)},${floor} ${points.join(" ")} ${x(run.at(-1)[0]).toFixed(1)},${floor}` }));
      }
      const kind = line.kind === "area" ? "" : line.kind;
      if (run.length === 1) nodes.push(draw("circle", { class: `dot ${kind}`, cx: x(run[0][0]), cy: y(run[0][1]), r: 2.2 }));
      else nodes.push(draw("polyline", { class: `line ${kind}`, points: points.join(" ") }));
    }
  }
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-label", label);
  svg.replaceChildren(...nodes);
}

/** Stretches without a gap. */
function runs(points) {
  const found = [];
  let run = [];
  for (const point of points) {
    if (point[1] !== null) run.push(point);
    else if (run.length) { found.push(run); run = []; }
  }
  if (run.length) found.push(run);
  return found;
}

/** Two to five round values that hold a range between them. */
function roundSteps(low, high) {
  if (high <= low) return [low, low + 1];
  const rough = (high - low) / 4;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 5, 10].find((size) => size * unit >= rough * 0.999);
  const first = Math.floor(low / step + 1e-9);
  const count = Math.ceil(high / step - 1e-9) - first;
  return Array.from({ length: count + 1 }, (_, at) => Number(((first + at) * step).toPrecision(12)));
}

// ---------------------------------------------------------------- traffic and drift

let watched = null;
let turn = 0;

async function poll() {
  if (!document.hidden) {
    try {
      if (about === null) await learn();
      watched = await ask("GET", "/v1/watch");
      if (watched.release !== about.release) { await learn(); await showAds(); }
      showHealth("up", "answering");
      showWatch();
      // A look takes the server more work than a chart.
      if (turn++ % EXPERIMENT_TURNS === 0) {
        await learn();
        await showExperiment();
      }
    } catch (problem) {
      showHealth("down", problem.message);
    }
  }
  setTimeout(poll, POLL_MS);
}

function showHealth(state, text) {
  if ($("health").textContent === text) return;  // else it would be read out again and again
  $("health").dataset.state = state;
  $("health").textContent = text;
}

function showWatch() {
  if (watched === null) return;
  showTraffic(watched);
  const mine = watched.drift.find((item) => item.release === watched.release);
  $("age").textContent = mine ? span(Date.now() / 1000 - mine.since_micros / 1e6) : "–";
  showDrift(watched, mine);
}

function showTraffic({ ticks, tick_s }) {
  const most = 300;
  const x = (at) => 1 - (ticks.length - 1 - at) / (most - 1);
  const points = (read) => ticks.map((tick, at) => [x(at), read(tick)]);
  const from = span(most * tick_s) + " ago";
  const last = ticks.at(-1) ?? { ranked: 0, turned_away: 0, p50_ms: null, p99_ms: null };
  const share = (tick) => (tick.ranked + tick.turned_away ? tick.turned_away / (tick.ranked + tick.turned_away) : 0);
  $("qps-now").textContent = `${short(last.ranked / tick_s)} /s`;
  $("latency-now").textContent = last.p99_ms === null ? "–" : `${ms(last.p50_ms)} · ${ms(last.p99_ms)}`;
  $("shed-now").textContent = percent(share(last));
  chart($("qps"), { lines: [{ points: points((tick) => tick.ranked / tick_s), kind: "area" }], format: short, from,
    label: `Rankings a second; now ${short(last.ranked / tick_s)}` });
  chart($("latency"), { lines: [{ points: points((tick) => tick.p50_ms), kind: "" }, { points: points((tick) => tick.p99_ms), kind: "second" }],
    format: (value) => `${short(value)}`, from, label: `Milliseconds from request to answer; now half within ${ms(last.p50_ms)} and 99 % within ${ms(last.p99_ms)}` });
  chart($("shed"), { lines: [{ points: points(share), kind: "area" }], format: percent, from, label: `Share that is turned away; now ${percent(share(last))}` });
}

/**
 * Parts of the time, joined until each has positives enough to tell something: by then chance alone
 * moves the calibration by a fifth.
 */
function pooled(parts) {
  const found = [];
  let sum = null;
  const close = () => {
    const rate = sum.positives / sum.rows;
    const entropy = -rate * Math.log(rate) - (1 - rate) * Math.log1p(-rate);
    found.push({ middle_s: (sum.start_s + sum.last_s) / 2, ne: sum.loss / sum.rows / entropy, calibration: sum.predicted / sum.positives });
    sum = null;
  };
  for (const part of parts) {
    sum ??= { start_s: part.start_s, rows: 0, positives: 0, loss: 0, predicted: 0 };
    sum.last_s = part.start_s;
    sum.rows += part.rows;
    sum.positives += part.positives;
    sum.loss += part.rows * (part.log_loss ?? 0);
    sum.predicted += part.predicted;
    if (sum.positives >= FEWEST_POSITIVES && sum.positives < sum.rows) close();
  }
  return found;
}

function showDrift({ drift, release, settle_s }, mine) {
  const tasks = [...new Set(drift.flatMap((item) => Object.keys(item.tasks)))];
  const select = $("task");
  if (tasks.join() !== [...select.options].map((option) => option.value).join() && tasks.length) {
    const before = select.value;
    select.replaceChildren(...tasks.map((task) => make("option", { value: task }, task)));
    if (tasks.includes(before)) select.value = before;
    select.disabled = false;
  }
  const task = select.value;
  const found = mine?.tasks[task] ?? null;
  const shift = found?.shift ?? null;
  const numbers = [
    ["ads seen", found ? whole.format(found.all.rows) : "–"],
    ["positives", found ? whole.format(found.all.positives) : "–"],
    ["normalised entropy", short(found?.all.ne)],
    ["predicted / happened", short(found?.all.calibration)],
    ["shift of scores (PSI)", shift ? shift.value.toFixed(4) : "–"],
    ["… by chance alone", shift ? shift.expected.toFixed(4) : "–"],
    ["labels wait for", span(settle_s)],
  ];
  $("drift-numbers").replaceChildren(...numbers.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]));
  const now = Date.now() / 1000;
  const with_task = drift.filter((item) => item.tasks[task]);
  const first = Math.min(...with_task.map((item) => item.since_micros / 1e6), now);
  const lines = (read) => with_task.map((item) => ({
    // A model that served before, or serves beside, is drawn behind the one that serves.
    kind: item.release === release ? "" : "before",
    points: pooled(item.tasks[task].parts).map((part) => [
      Math.min(1, (item.since_micros / 1e6 + part.middle_s - first) / Math.max(now - first, 1)), read(part),
    ]),
  }));
  $("drift-others").hidden = with_task.every((item) => item.release === release);
  const from = span(now - first) + " ago";
  $("ne-now").textContent = short(found?.all.ne);
  $("calibration-now").textContent = short(found?.all.calibration);
  chart($("ne"), { lines: lines((part) => part.ne), format: short, from, around: 1, label: `Normalised entropy of ${task}; over all ${short(found?.all.ne)}, and 1 is what a constant has` });
  chart($("calibration"), { lines: lines((part) => part.calibration), format: short, from, around: 1, label: `Predicted over happened of ${task}; over all ${short(found?.all.calibration)}, and 1 is right` });
}

// ---------------------------------------------------------------- the experiment that runs

async function showExperiment() {
  const name = about.experiment;
  $("experiment").hidden = name === null;
  if (name === null) return;
  $("experiment-name").textContent = name;
  try {
    const found = await ask("GET", `/v1/experiments/${encodeURIComponent(name)}`);
    $("experiment-said").textContent = found.kind === "split" ? splitSaid(found) : shadowSaid(found);
    $("experiment-what").textContent = found.kind === "split"
      ? `${percent(found.treated_share)} of the users see ${found.treatment.slice(0, 12)}` : `${found.treatment.slice(0, 12)} scores in the shadow`;
    showLooks(found.kind === "split" ? found.metrics.map(splitRow) : shadowRows(found.shadow), found.kind);
  } catch (problem) {
    $("experiment-said").textContent = problem.message;
  }
}

function splitSaid({ split }) {
  if (split === null) return "Nobody has been answered yet.";
  const users = `${whole.format(split.control_users)} users of the control, ${whole.format(split.treated_users)} treated.`;
  return split.is_mismatch ? `${users} They were not split as planned: trust no number here.` : users;
}

const shadowSaid = ({ shadow }) => shadow === null ? "It does not run on this server."
  : `${whole.format(shadow.scored)} requests scored, ${whole.format(shadow.dropped)} dropped, ${whole.format(shadow.failed)} failed; `
    + `${shadow.overlap === null ? "–" : percent(shadow.overlap)} of the served ads would have been shown too.`;

function splitRow({ metric, difference, guarded }) {
  const lift = difference?.lift ?? null;
  return {
    name: metric.replaceAll("_", " "), lift,
    cells: [short(difference?.control.value), short(difference?.treatment.value), lift === null ? "–" : signed(100 * lift.value) + " %",
      lift === null ? "–" : `${signed(100 * lift.lower)} to ${signed(100 * lift.upper)} %`, short(difference?.p_value),
      guarded === null ? "–" : short(guarded.p_value)],
  };
}

const shadowRows = (shadow) => Object.entries(shadow?.log_loss_differences ?? {}).map(([task, found]) => ({
  name: task, lift: found, cells: [signed(found.value), `${signed(found.lower)} to ${signed(found.upper)}`],
}));

const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + short(Math.abs(value));

function showLooks(rows, kind) {
  const heads = kind === "split" ? ["control", "treatment", "lift", "95 % of one look", "p of one look", "p of any look"] : ["log loss, shadow − served", "95 % of one look"];
  $("experiment-head").replaceChildren(make("th", { scope: "col" }, kind === "split" ? "metric" : "task"),
    ...heads.map((text) => make("th", { scope: "col", className: "n" }, text)), make("th", { scope: "col" }, ""));
  const reach = Math.max(...rows.filter((row) => row.lift).flatMap(({ lift }) => [Math.abs(lift.lower), Math.abs(lift.upper)]), 1e-9);
  $("experiment-body").replaceChildren(...rows.map((row) => make("tr", {}, cell(row.name, "strong"),
    ...row.cells.map((text) => cell(text, "n")), make("td", {}, row.lift ? whisker(row.lift, reach) : ""))));
}

/** An interval on a line whose middle is no difference. */
function whisker({ value, lower, upper }, reach) {
  const x = (at) => 104 + (98 * at) / reach;
  const kind = lower > 0 || upper < 0 ? "" : "open";
  return draw("svg", { class: "whisker", viewBox: "0 0 208 21", "aria-hidden": "true" },
    draw("line", { class: "zero", x1: 104, x2: 104, y1: 1, y2: 20 }),
    draw("line", { class: `span ${kind}`, x1: x(lower), x2: x(upper), y1: 10.5, y2: 10.5 }),
    draw("circle", { class: `dot ${kind}`, cx: x(value), cy: 10.5, r: 4 }));
}

// ---------------------------------------------------------------- ads

let offset = 0;
let asked = 0;

async function showAds() {
  const mine = ++asked;
  const contains = $("contains").value;
  let found;
  try {
    found = await ask("GET", `/v1/ads?${new URLSearchParams({ contains, offset, limit: PAGE })}`);
  } catch (problem) {
    $("ads-said").textContent = problem.message;
    return;
  }
  if (mine !== asked) return;  // somebody typed on meanwhile
  const last = Math.min(offset + found.ads.length, found.total);
  $("inventory-count").textContent = found.total ? `${whole.format(offset + 1)}–${whole.format(last)} of ${whole.format(found.total)}` : "none";
  $("earlier").disabled = offset === 0;
  $("later").disabled = last >= found.total;
  const [bid, quality, popularity] = ["bid", "quality", "popularity"].map((name) => column(found.ads.map((ad) => ad[name])));
  $("ads-body").replaceChildren(...found.ads.map((ad) => make("tr", {},
    cell(ad.ad, "strong"), cell(bid(ad.bid), "n"), cell(ad.billing, ""), cell(quality(ad.quality), "n"), cell(popularity(ad.popularity), "n"),
    cell(described(ad), "features"), cell(ad.is_from_bundle ? "bundle" : "store", "small"),
    make("td", { className: "n" }, removeButton(ad.ad)))));
}

const described = (ad) => Object.entries(ad.features).filter(([, value]) => value !== null)
  .map(([name, value]) => `${name.replaceAll("_", " ")} ${typeof value === "number" ? short(value) : value}`).join(" · ");

/** The first press asks, the second one removes. */
function removeButton(ad) {
  const button = make("button", { type: "button", className: "quiet" }, "Remove");
  button.setAttribute("aria-label", `Remove ad ${ad}`);
  const reset = () => { button.textContent = "Remove"; button.classList.remove("sure"); };
  button.addEventListener("blur", reset);
  button.addEventListener("click", async () => {
    if (!button.classList.contains("sure")) {
      button.textContent = "Sure?";
      button.classList.add("sure");
      return;
    }
    button.disabled = true;
    try {
      await ask("DELETE", `/v1/ads/${encodeURIComponent(ad)}`);
      $("ads-said").textContent = `Ad ${ad} is not shown any more.`;
      await Promise.all([learn(), showAds()]);
      $("contains").focus();
    } catch (problem) {
      $("ads-said").textContent = problem.message;
      button.disabled = false;
      reset();
    }
  });
  return button;
}

async function addAd(event) {
  event.preventDefault();
  const ad = $("add-id").value.trim();
  $("add-problem").textContent = "";
  try {
    await ask("PUT", `/v1/ads/${encodeURIComponent(ad)}`, {
      features: typed($("add-fields"), about.ad),
      bid: Number($("add-bid").value),
      billing: $("add-billing").value,
      advertiser: $("add-advertiser").value.trim(),
      quality: Number($("add-quality").value),
      popularity: $("add-popularity").value === "" ? null : Number($("add-popularity").value),
    });
    $("ads-said").textContent = `Ad ${ad} may be shown now.`;
    $("contains").value = ad;
    offset = 0;
    await Promise.all([learn(), showAds()]);
  } catch (problem) {
    $("add-problem").textContent = problem.message;
  }
}

// ---------------------------------------------------------------- start

$("ask-form").addEventListener("submit", rank);
$("token-form").addEventListener("submit", (event) => event.preventDefault());
$("add-form").addEventListener("submit", addAd);
$("contains").addEventListener("input", () => { offset = 0; showAds(); });
$("earlier").addEventListener("click", () => { offset = Math.max(0, offset - PAGE); showAds(); });
$("later").addEventListener("click", () => { offset += PAGE; showAds(); });
$("task").addEventListener("change", showWatch);
window.addEventListener("resize", showWatch);
chart($("qps"), { lines: [], format: short, from: "", label: "Rankings a second" });
chart($("latency"), { lines: [], format: short, from: "", label: "Milliseconds from request to answer" });
chart($("shed"), { lines: [], format: percent, from: "", label: "Share that is turned away" });
chart($("ne"), { lines: [], format: short, from: "", around: 1, label: "Normalised entropy" });
chart($("calibration"), { lines: [], format: short, from: "", around: 1, label: "Predicted over happened" });
poll();
showAds();
