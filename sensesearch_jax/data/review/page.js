'use strict';
const $ = (name) => document.getElementById(name);
let items = [], at = 0, saved = Promise.resolve();

function problem(text) { $('problem').hidden = !text; $('problem').textContent = text || ''; }

function passes(item) {
  const wanted = $('filter').value;
  return wanted === 'all' || item.verdict === (wanted === 'open' ? '' : wanted);
}

// The next place in a direction whose item passes the filter, around the end; the same place if there is none.
function following(from, step) {
  for (let i = 1; i <= items.length; i++) {
    const place = (from + step * i + items.length * i) % items.length;
    if (passes(items[place])) return place;
  }
  return from;
}

function tag(text, kind) {
  const span = document.createElement('span');
  span.textContent = text;
  if (kind) span.className = kind;
  return span;
}

function show() {
  const item = items[at];
  const tags = [tag(`${at + 1} / ${items.length}`), tag(item.id)];
  for (const value of [item.category, item.difficulty]) if (value) tags.push(tag(value));
  if (item.box) tags.push(tag(`box ${(100 * area(item.box)).toFixed(2)} %`));
  if (item.right !== null) tags.push(tag(`right ${item.right} of ${item.samples}`));
  if (item.verdict) tags.push(tag(item.verdict === 'accept' ? 'accepted' : 'rejected', item.verdict));
  $('tags').replaceChildren(...tags);
  $('question').textContent = item.question;
  $('choices').replaceChildren(...item.choices.map((choice) => {
    const line = document.createElement('li');
    line.textContent = choice;
    return line;
  }));
  $('answers').textContent = item.answers[0];
  if (item.answers.length > 1) {
    const also = document.createElement('small');
    also.textContent = `also: ${item.answers.slice(1).join(' · ')}`;
    $('answers').append(also);
  }
  $('note').value = item.note;
  pictures(item);
  progress();
  location.hash = encodeURIComponent(item.id);
  const next = following(at, 1);
  if (next !== at && items[next].images) new Image().src = `items/${next}/images/0`;
}

function area([left, top, right, bottom]) { return (right - left) * (bottom - top); }

function pictures(item) {
  const frames = [];
  for (let number = 0; number < item.images; number++) {
    const frame = document.createElement('div'), image = document.createElement('img');
    frame.className = 'frame';
    image.alt = `Image ${number + 1}`;
    image.onerror = () => problem(`Image ${number + 1} of ${item.id} cannot be shown.`);
    image.src = `items/${at}/images/${number}`;
    frame.append(image);
    if (number === 0 && item.box) frame.append(rectangle(item.box));
    frames.push(frame);
  }
  $('pictures').replaceChildren(...frames);
  $('close').hidden = !item.box || !item.images;
  if ($('close').hidden) return;
  const image = frames[0].firstChild;
  const zoom = () => closeUp(item.box, image);
  if (image.complete && image.naturalWidth) zoom(); else image.onload = zoom;
}

function rectangle([left, top, right, bottom]) {
  const box = document.createElement('div');
  box.className = 'box';
  Object.assign(box.style, {
    left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%`,
  });
  return box;
}

// The box with half of its size around it, in the shape of the panel.
function closeUp([left, top, right, bottom], image) {
  const panel = $('zoom'), shape = panel.clientWidth / panel.clientHeight;
  let wide = 2 * (right - left) * image.naturalWidth, high = 2 * (bottom - top) * image.naturalHeight;
  if (wide < high * shape) wide = high * shape; else high = wide / shape;
  const scale = panel.clientWidth / wide;
  const x = (left + right) / 2 * image.naturalWidth - wide / 2, y = (top + bottom) / 2 * image.naturalHeight - high / 2;
  Object.assign(panel.style, {
    backgroundImage: `url("${image.src}")`, backgroundSize: `${image.naturalWidth * scale}px ${image.naturalHeight * scale}px`,
    backgroundPosition: `${-x * scale}px ${-y * scale}px`,
  });
}

function progress() {
  const count = (verdict) => items.filter((item) => item.verdict === verdict).length;
  const accepted = count('accept'), rejected = count('reject'), done = accepted + rejected;
  $('progress').textContent = `${done} of ${items.length} decided · ${accepted} accepted · ${rejected} rejected${done === items.length ? ' · all decided' : ''}`;
  $('bar').max = items.length;
  $('bar').value = done;
  for (const name of ['accept', 'reject']) $(name).setAttribute('aria-pressed', items[at].verdict === name);
  $('clear').disabled = !items[at].verdict;
  shares(accepted);
}

function shares(accepted) {
  const tables = ['category', 'difficulty'].map((field) => {
    const counts = new Map();
    for (const item of items) if (item.verdict === 'accept') counts.set(item[field] || '(none)', (counts.get(item[field] || '(none)') || 0) + 1);
    const table = document.createElement('table');
    table.createCaption().textContent = `accepted by ${field}`;
    for (const [name, count] of [...counts].sort((a, b) => b[1] - a[1])) {
      const row = table.insertRow(), head = document.createElement('th');
      head.textContent = name;
      row.append(head);
      row.insertCell().textContent = count;
      row.insertCell().textContent = `${(100 * count / accepted).toFixed(1)} %`;
    }
    return table;
  });
  $('shares').replaceChildren(...(accepted ? tables : []));
}

// Decisions are saved one after another, each about the item that was shown when it was made.
function decide(verdict) {
  const here = at, note = $('note').value;
  saved = saved.then(() => save(here, verdict, note));
}

async function save(here, verdict, note) {
  const item = items[here];
  try {
    const answer = await fetch('decisions', {
      method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify({id: item.id, verdict, note}),
    });
    if (!answer.ok) throw new Error(`the server said ${answer.status}`);
  } catch (error) {
    problem(`${item.id} is not saved: ${error.message}. Is the command still running? Decide again when it is.`);
    return;
  }
  problem('');
  Object.assign(item, {verdict, note});
  if (at !== here) { progress(); return; }  // the person has gone on meanwhile
  if (verdict) at = following(at, 1);
  show();
}

function go(step) { at = following(at, step); show(); }

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === $('note')) {
    if (event.key === 'Escape' || event.key === 'Enter') $('note').blur();
    return;
  }
  if (event.target.tagName === 'SELECT') return;
  const act = {
    a: () => decide('accept'), r: () => decide('reject'), u: () => decide(''), ArrowLeft: () => go(-1), ArrowRight: () => go(1),
    n: () => $('note').focus(), b: () => document.body.classList.toggle('hide-box'),
  }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (act) { event.preventDefault(); act(); }
});
$('accept').onclick = () => decide('accept');
$('reject').onclick = () => decide('reject');
$('clear').onclick = () => decide('');
$('previous').onclick = () => go(-1);
$('next').onclick = () => go(1);
$('filter').onchange = () => { $('filter').blur(); if (!passes(items[at])) at = following(at, 1); show(); };

fetch('items').then((answer) => answer.json()).then((found) => {
  items = found.items;
  document.title = $('name').textContent = found.name;
  const wanted = items.findIndex((item) => item.id === decodeURIComponent(location.hash.slice(1)));
  const open = items.findIndex((item) => !item.verdict);
  at = Math.max(0, wanted >= 0 ? wanted : open);
  if (open < 0) $('filter').value = 'all';
  show();
}).catch((error) => problem(`The items cannot be had: ${error.message}`));
