// The live page of runs: asks every two seconds how they are, and draws what has changed.
'use strict';
(() => {
  const EVERY_MS = 2000;
  const $ = selector => document.querySelector(selector);
  const viewer = trajectoryViewer($('#viewer'));
  const chosen = new Set();
  const drawn = {}; // version of what is drawn, by place
  let known = null;

  function problem(text) { $('.problem').hidden = !text; $('.problem').textContent = text || ''; }

  function time(seconds) {
    if (seconds < 100) return `${Math.max(0, Math.round(seconds))} s`;
    const minutes = Math.round(seconds / 60);
    if (minutes < 100) return `${minutes} min`;
    const hours = Math.floor(minutes / 60);
    return hours < 48 ? `${hours} h ${String(minutes % 60).padStart(2, '0')} min` : `${Math.round(hours / 24)} days`;
  }

  async function get(address) {
    const answer = await fetch(address);
    if (answer.ok) return answer;
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.detail || `the server said ${answer.status}`);
  }

  const of = (name, what) => `runs/${encodeURIComponent(name)}/${what}`;

  // ---- runs ----

  function bar(progress) {
    const share = progress.total ? progress.done / progress.total : 0;
    const node = element('div.progress', { role: 'progressbar', 'aria-valuenow': String(Math.round(100 * share)), 'aria-label': progress.stage },
      element('i'));
    node.firstChild.style.width = `${100 * share}%`;
    return node;
  }

  function card(run) {
    const p = run.progress, task = run.task.replaceAll('_', ' ');
    const steps = p && `${p.done}${p.total ? ` of ${p.total}` : ''} ${p.unit}${p.total === 1 ? '' : 's'}`;
    const left = run.state === 'running' && p && p.left_s !== null && p.done < p.total ? `${time(p.left_s)} left` : null;
    const age = run.age_s === null ? null : `wrote ${time(run.age_s)} ago`;
    const shown = p ? Object.entries(p.shown).filter(([name]) => name !== 'ALARM') : [];
    const node = element('button.card', { type: 'button', 'aria-pressed': String(chosen.has(run.name)) },
      element('span.name', {}, element('b', {}, known.length > 1 ? run.name : task), element(`span.state.${run.state}`, {}, run.state)),
      known.length > 1 ? element('span.note', {}, task) : null,
      p ? bar(p) : null,
      p ? element('span.stage', {}, [p.stage, steps, left].filter(Boolean).join(' · ')) : null,
      element('span.note', {}, [...shown.map(([name, value]) => `${name.replaceAll('_', ' ')} ${value}`), age].filter(Boolean).join(' · ')),
      ...run.alarms.map(alarm => element('span.alarm', {}, alarm.alarm.replaceAll('_', ' '))));
    node.addEventListener('click', () => {
      if (known.length < 2) return;
      if (chosen.has(run.name) && chosen.size > 1) chosen.delete(run.name); else chosen.add(run.name);
      draw();
    });
    return element('div.cell', {}, node);
  }

  // ---- alarms ----

  function alarms(runs) {
    const lines = runs.flatMap(run => run.history.map(line => ({ ...line, run: run.name,
      raised: run.alarms.some(a => a.alarm === line.alarm && a.stage === line.stage && a.step === line.step) })));
    lines.sort((a, b) => b.time - a.time);
    $('#alarms').hidden = !lines.length;
    $('#alarms ol').replaceChildren(...lines.map(line => element(line.raised ? 'li.raised' : 'li', {},
      element('span.alarm', {}, line.over ? `${line.alarm.replaceAll('_', ' ')} is over` : line.alarm.replaceAll('_', ' ')),
      element('span', {}, line.over ? '' : line.sentence),
      element('span.note', {}, [runs.length > 1 ? line.run : null, line.stage, `step ${line.step}`,
        new Date(1000 * line.time).toLocaleString()].filter(Boolean).join(' · ')))));
  }

  // ---- curves, trajectories, configuration ----

  async function fragment(address) {
    const text = await (await get(address)).text();
    return [...new DOMParser().parseFromString(text, 'text/html').body.childNodes];
  }

  async function curves(runs) {
    const box = $('#curves .beside');
    for (const old of [...box.children]) if (!runs.some(run => run.name === old.dataset.run)) { delete drawn[`curves ${old.dataset.run}`]; old.remove(); }
    for (const [i, run] of runs.entries()) {
      const column = [...box.children].find(node => node.dataset.run === run.name) || element('div.column', { 'data-run': run.name });
      if (box.children[i] !== column) box.insertBefore(column, box.children[i] || null);
      const key = `curves ${run.name}`, version = `${run.versions.curves} ${runs.length > 1}`;
      if (drawn[key] === version || column.querySelector('.cursor:not([hidden])')) continue; // someone is reading it
      const open = [...column.querySelectorAll('details')].map(details => details.open);
      column.replaceChildren(...(runs.length > 1 ? [element('h4', {}, run.name)] : []), ...await fragment(of(run.name, 'curves')));
      column.querySelectorAll('details').forEach((details, i) => { details.open = open[i] || false; });
      readCurves(column);
      drawn[key] = version;
    }
    $('#curves').hidden = !box.querySelector('.curve');
  }

  async function trajectories(run) {
    const version = `${run.name} ${run.versions.trajectories}`;
    if (drawn.trajectories === version || (!$('#follow').checked && (drawn.trajectories || '').startsWith(`${run.name} `))) return;
    const data = await (await get(of(run.name, 'trajectories'))).json();
    $('#trajectories').hidden = !data.questions.length;
    if (data.questions.length) viewer.show(data);
    drawn.trajectories = version;
  }

  async function configuration(run) {
    if (drawn.configuration === run.name) return;
    $('#run .fields').replaceChildren(element('details', {}, element('summary', {}, `Fields of ${run.name}`), ...await fragment(of(run.name, 'config'))));
    $('#run').hidden = false;
    drawn.configuration = run.name;
  }

  // ---- all ----

  async function draw() {
    for (const name of [...chosen]) if (!known.some(run => run.name === name)) chosen.delete(name);
    if (!chosen.size && known.length) chosen.add((known.find(run => run.state === 'running') || known[known.length - 1]).name);
    const focused = [...$('#runs').querySelectorAll('button')].indexOf(document.activeElement);
    $('#runs').classList.toggle('one', known.length === 1);
    $('#runs').replaceChildren(...(known.length ? known.map(card) : [element('p.empty', {}, 'No run is here yet.')]));
    if (focused >= 0) $('#runs').querySelectorAll('button')[focused]?.focus();
    const runs = known.filter(run => chosen.has(run.name));
    $('nav').hidden = !runs.length;
    alarms(runs);
    await curves(runs);
    if (runs.length) {
      await trajectories(runs[0]);
      await configuration(runs[0]);
    }
  }

  async function look() {
    try {
      known = (await (await get('state')).json()).runs;
      await draw();
      problem('');
    } catch (error) {
      problem(error instanceof TypeError ? 'The command that serves this page cannot be reached; start it again.' : `${error.message}`);
    }
    setTimeout(look, EVERY_MS);
  }

  $('#viewer').addEventListener('chosen', () => { $('#follow').checked = false; });
  look();
})();
