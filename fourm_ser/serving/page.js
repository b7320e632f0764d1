// The page: record or take a file, send it as 16 kHz WAV, draw what comes back. No library.
"use strict";

const RATE = 16000;
const COLOURS = ["#c0392b", "#e0a100", "#2b6cb0", "#7a8794", "#8e44ad", "#2c8f6b", "#7b5e2a", "#d6639b", "#3d9fb5", "#9aa52a"];
const FOR = "#d9650b", AGAINST = "#12807f";  // what speaks for the emotion and against it
const $ = (id) => document.getElementById(id);
let model = null, chosen = null, recorder = null, latest = null;

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

async function start() {
  const answer = await fetch("api/model");
  if (!answer.ok) throw new Error("the model cannot be asked for");
  model = await answer.json();
  $("about").textContent = `Tells ${model.emotions.join(", ")} by ${model.reads.join(" and ")}. ` +
    `Recordings of up to ${model.max_seconds} s; they stay on the machine that serves this page.`;
  const reads = model.reads.includes("text");
  $("words").hidden = !reads;
  $("silent").hidden = !(reads && model.transcribes);
  $("hint").textContent = model.transcribes ? "Leave it empty to have it transcribed." : "Empty: there are no words in it.";
  if (!navigator.mediaDevices) {
    $("record").disabled = true;
    $("record").title = "a browser records on https pages and on this machine's own alone";
  }
}

// ---- where a recording comes from

async function record() {
  if (recorder) {
    recorder.stop();
    return;
  }
  const stream = await navigator.mediaDevices.getUserMedia({audio: true});
  const parts = [], began = Date.now();
  recorder = new MediaRecorder(stream);
  const show = () => {
    const seconds = (Date.now() - began) / 1000;
    $("clock").textContent = `${seconds.toFixed(0)} s`;
    if (seconds >= model.max_seconds && recorder) recorder.stop();
  };
  const timer = setInterval(show, 200);
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = async () => {
    clearInterval(timer);
    stream.getTracks().forEach((track) => track.stop());
    $("record").textContent = "Record";
    $("record").setAttribute("aria-pressed", "false");
    recorder = null;
    await take(new Blob(parts, {type: parts[0] ? parts[0].type : ""}), "recording");
  };
  recorder.start();
  $("record").textContent = "Stop";
  $("record").setAttribute("aria-pressed", "true");
  say("Listening.");
}

async function take(blob, name) {
  chosen = null;
  $("send").disabled = true;
  $("result").hidden = true;
  if (blob.size > 20e6 * model.max_megabytes) {  // what no compression brings below the limit
    say(`${name}: too large.`, true);
    return;
  }
  let body = blob, seconds = null;
  try {
    const samples = await decode(blob);
    seconds = samples.length / RATE;
    body = wav(samples);
  } catch {
    say(`${name}: this browser cannot read it; it is sent as it is.`);
  }
  if (seconds !== null && seconds > model.max_seconds) {
    say(`${name}: ${seconds.toFixed(0)} s. Expected ${model.max_seconds} s at most.`, true);
    return;
  }
  if (body.size > 1e6 * model.max_megabytes) {
    say(`${name}: ${(body.size / 1e6).toFixed(0)} MB. Expected ${model.max_megabytes} MB at most.`, true);
    return;
  }
  chosen = {body, name};
  $("player").src = URL.createObjectURL(blob);
  $("player").hidden = false;
  $("send").disabled = false;
  if (seconds !== null) say(`${name}: ${seconds.toFixed(1)} s.`);
}

async function decode(blob) {
  const bytes = await blob.arrayBuffer();
  const whole = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytes);  // resampled to its rate
  const mixed = new Float32Array(whole.length);
  for (let channel = 0; channel < whole.numberOfChannels; channel++) {
    const own = whole.getChannelData(channel);
    for (let place = 0; place < mixed.length; place++) mixed[place] += own[place] / whole.numberOfChannels;
  }
  return mixed;
}

function wav(samples) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const word = (at, text) => [...text].forEach((letter, place) => view.setUint8(at + place, letter.charCodeAt(0)));
  word(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); word(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true); view.setUint32(28, 2 * RATE, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  word(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, place) => view.setInt16(44 + 2 * place, Math.round(32767 * Math.max(-1, Math.min(1, value))), true));
  return new Blob([view], {type: "audio/wav"});
}

// ---- asking

async function send() {
  const query = new URLSearchParams({explain: "true", name: chosen.name.slice(0, 200)});
  if (model.reads.includes("text")) {
    const text = $("text").value.trim();
    if (text || !model.transcribes || $("none").checked) query.set("text", text);
  }
  $("send").disabled = true;
  say("Computing.");
  try {
    const answer = await fetch(`api/emotion?${query}`, {method: "POST", body: chosen.body});
    const found = (answer.headers.get("content-type") || "").includes("json") ? await answer.json() : {detail: await answer.text()};
    if (!answer.ok) throw new Error(typeof found.detail === "string" ? found.detail : "the server refused it");
    say("");
    latest = found;
    show(found);
  } catch (error) {
    say(error.message, true);
  } finally {
    $("send").disabled = false;
  }
}

// ---- showing

const colour = (emotion) => COLOURS[model.emotions.indexOf(emotion) % COLOURS.length];
const percent = (share) => `${(100 * share).toFixed(1)}%`;

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function show(found) {
  $("result").hidden = false;
  $("emotion").textContent = found.emotion;
  const ranked = Object.entries(found.probabilities).sort((one, other) => other[1] - one[1]);
  $("shares").replaceChildren(...ranked.map(([emotion, share]) => {
    const line = element("li", null);
    line.append(element("span", emotion), element("meter", null, {min: 0, max: 1, value: share, "aria-label": emotion}), element("span", percent(share)));
    return line;
  }));
  draw(found);
  showWords(found);
  showTable(found);
  $("emotion").focus();
}

function draw(found) {
  const canvas = $("wave"), ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  pen.scale(ratio, ratio);
  const x = (seconds) => seconds / found.seconds * width, middle = height / 2 - 8, loudest = Math.max(...found.outline, 1e-6);
  const edges = found.stretches.map((one, place, all) => [
    place ? (one.start + one.end + all[place - 1].start + all[place - 1].end) / 4 : one.start,
    place < all.length - 1 ? (one.start + one.end + all[place + 1].start + all[place + 1].end) / 4 : one.end,
  ]);
  found.stretches.forEach((one, place) => {
    if (!one.emotion) return;
    pen.globalAlpha = 0.25;
    pen.fillStyle = colour(one.emotion);
    pen.fillRect(x(edges[place][0]), 0, x(edges[place][1] - edges[place][0]), 2 * middle);
  });
  pen.globalAlpha = 1;
  const strongest = Math.max(...found.moments.map((moment) => Math.abs(moment.effect)), 1e-6);
  found.outline.forEach((level, place, all) => {
    const seconds = (place + 0.5) / all.length * found.seconds, part = found.moments.find((one) => one.start <= seconds && seconds < one.end);
    pen.fillStyle = part && Math.abs(part.effect) > 0.05 * strongest ? (part.effect > 0 ? FOR : AGAINST) : style.getPropertyValue("--quiet");
    const tall = Math.max(1, level / loudest * (middle - 4));
    pen.fillRect(place / all.length * width, middle - tall, Math.max(1, width / all.length - 0.5), 2 * tall);
  });
  pen.fillStyle = style.getPropertyValue("--ink");
  pen.font = "12px system-ui, sans-serif";
  pen.textAlign = "center";
  const step = [0.5, 1, 2, 5, 10, 30, 60, 120].find((one) => found.seconds / one <= width / 60) || 300;
  for (let seconds = 0; seconds <= found.seconds; seconds += step) {
    pen.fillText(`${seconds} s`, Math.min(width - 14, Math.max(12, x(seconds))), height - 2);
  }
  const named = [...new Set(found.stretches.map((one) => one.emotion).filter(Boolean))];
  $("legend").replaceChildren(...named.map((emotion) => {
    const one = element("span", null), patch = element("i", null);
    patch.style.background = colour(emotion);
    one.append(patch, emotion);
    return one;
  }));
  if (found.moments.length) $("legend").append(" Orange sound: the emotion is less likely without it. Teal: it is more likely.");
  canvas.setAttribute("aria-label", `The recording's sound over ${found.seconds.toFixed(1)} s, by emotion: ${named.join(", ")}. The table below has the numbers.`);
}

function showWords(found) {
  const said = found.stretches.map((one) => one.text).filter((text) => text !== null);
  $("said").hidden = !said.length;
  const strongest = Math.max(...found.words.map((word) => Math.abs(word.effect)), 1e-6);
  $("transcript").replaceChildren(...(found.words.length ? found.words.flatMap((word) => {
    const one = element("span", word.name, {title: `${word.effect > 0 ? "+" : ""}${(100 * word.effect).toFixed(1)} points`});
    const share = Math.round(70 * Math.abs(word.effect) / strongest);
    one.style.background = `color-mix(in srgb, ${word.effect > 0 ? FOR : AGAINST} ${share}%, transparent)`;
    return [one, " "];
  }) : [said.join(" ") || "(no words)"]));
}

function showTable(found) {
  const head = element("tr", null), rows = [];
  head.append(...["from", "to", "emotion", ...model.emotions].map((name) => element("th", name)));
  for (const one of found.stretches) {
    const row = element("tr", null), shares = model.emotions.map((name) => name in one.probabilities ? percent(one.probabilities[name]) : "");
    row.append(...[`${one.start.toFixed(1)} s`, `${one.end.toFixed(1)} s`, one.emotion || one.error, ...shares].map((text) => element("td", text)));
    rows.push(row);
  }
  document.querySelector("#table thead").replaceChildren(head);
  document.querySelector("#table tbody").replaceChildren(...rows);
}

// ---- what happens when

const caught = (work) => (...given) => Promise.resolve(work(...given)).catch((error) => say(error.message, true));
$("record").addEventListener("click", caught(record));
$("send").addEventListener("click", caught(send));
$("file").addEventListener("change", caught(async () => { if ($("file").files[0]) await take($("file").files[0], $("file").files[0].name); }));
for (const event of ["dragenter", "dragover"]) {
  $("drop").addEventListener(event, (one) => { one.preventDefault(); $("drop").classList.add("over"); });
}
for (const event of ["dragleave", "drop"]) $("drop").addEventListener(event, () => $("drop").classList.remove("over"));
$("drop").addEventListener("drop", caught(async (event) => {
  event.preventDefault();
  const file = event.dataTransfer.files[0];
  if (file) await take(file, file.name);
}));
window.addEventListener("resize", () => { if (latest && !$("result").hidden) draw(latest); });
caught(start)();
