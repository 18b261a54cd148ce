"use strict";
// Every text of a user or of the model goes in by textContent: nothing of it is ever read as HTML.
const at = (id) => document.getElementById(id);

async function ask(path, body) {
  const headers = { "Content-Type": "application/json" };
  if (at("token").value) headers.Authorization = `Bearer ${at("token").value}`;
  const asked = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) };
  const found = await fetch(path, asked);
  const told = await found.json().catch(() => ({ detail: `the server answered ${found.status} ${found.statusText}` }));
  if (found.status === 401) at("token").hidden = at("token-label").hidden = false;
  if (!found.ok) throw new Error(told.detail);
  return told;
}

function cell(row, kind, text) {
  const made = row.insertCell();
  made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}

function show(answer, explained) {
  const predicted = [].concat(answer.predicted ?? []).join(", ") || "no label";
  at("predicted").textContent = answer.abstained ? "The model abstains" : predicted;
  at("probabilities").replaceChildren();
  for (const [label, value] of Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1])) {
    const row = at("probabilities").insertRow();
    cell(row, "label", label);
    const bar = document.createElement("progress");
    bar.value = value;
    cell(row, "bar").append(bar);
    cell(row, "number", value.toFixed(4));
  }
  at("label").textContent = explained.label;
  const largest = Math.max(...explained.words.map(({ attribution }) => Math.abs(attribution)), 1e-9);
  at("words").replaceChildren();
  for (const { word, attribution } of explained.words) {
    const span = document.createElement("span");
    span.textContent = word;
    span.title = attribution.toFixed(4);
    const strength = Math.abs(attribution) / largest;
    span.style.backgroundColor = `rgb(${attribution > 0 ? "230 120 0" : "40 110 200"} / ${(0.7 * strength).toFixed(3)})`;
    at("words").append(span, " ");
  }
  at("answer").hidden = false;
}

at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  at("message").textContent = "";
  at("answer").hidden = true;
  at("ask").disabled = true;
  try {
    const text = at("text").value;
    const [{ answers }, explained] = await Promise.all([ask("predict", { texts: [text] }), ask("explain", { text })]);
    if (answers[0].error) throw new Error(answers[0].error);
    show(answers[0], explained);
  } catch (error) {
    at("message").textContent = error.message;
  } finally {
    at("ask").disabled = false;
  }
});

function about() {
  ask("model").then(
    (told) => { at("about").textContent = `${told.task}: ${told.labels.join(", ")}. Model ${told.model_sha256.slice(0, 12)}…`; },
    (error) => { at("about").textContent = error.message; },
  );
}

at("token").addEventListener("change", about);
about();
