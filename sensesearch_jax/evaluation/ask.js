// The page on which questions are asked: gives pictures, asks, and draws each trajectory as it grows.
'use strict';
(() => {
  const EVERY_MS = 300;
  const { element, drawing } = Trajectories;
  const $ = selector => document.querySelector(selector);
  const form = $('#ask'), drop = $('.drop'), input = $('.drop input'), text = form.elements.question;
  let pictures = [];
  let asked = null; // the number of the question that is being answered

  function problem(sentence) { $('.problem').hidden = !sentence; $('.problem').textContent = sentence || ''; }

  async function send(address, body, type) {
    let answer;
    try {
      answer = await fetch(address, body === undefined ? {} : { method: 'POST', headers: { 'Content-Type': type }, body });
    } catch {
      throw new Error('The command that serves this page cannot be reached; start it again.');
    }
    const said = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Error(typeof said.detail === 'string' ? said.detail : `The server said ${answer.status}.`);
    return said;
  }
  const json = (address, value) => send(address, JSON.stringify(value), 'application/json');

  // ---- pictures ----

  function given() {
    $('.given').replaceChildren(...pictures.map((p, i) => element('img', { src: `pictures/${p.sha}/960`, alt: `picture ${i + 1}, ${p.width}×${p.height}` })));
    $('.hint').hidden = pictures.length > 0;
    $('#clear').hidden = !pictures.length;
  }

  async function take(files) {
    problem('');
    drop.classList.add('busy');
    for (const file of files) {
      try {
        pictures.push(await send('pictures', file, 'application/octet-stream'));
      } catch (error) { problem(error.message); }
    }
    drop.classList.remove('busy');
    input.value = '';
    given();
    if (files.length) text.focus();
  }

  input.addEventListener('change', () => take([...input.files]));
  drop.addEventListener('keydown', event => { if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); input.click(); } });
  for (const name of ['dragover', 'dragleave', 'drop']) {
    document.addEventListener(name, event => {
      event.preventDefault();
      drop.classList.toggle('over', name === 'dragover');
      if (name === 'drop') take([...event.dataTransfer.files]);
    });
  }
  document.addEventListener('paste', event => {
    const files = [...event.clipboardData.files];
    if (files.length) { event.preventDefault(); take(files); }
  });
  $('#clear').addEventListener('click', () => { pictures = []; given(); });

  // ---- questions ----

  function working(number) {
    asked = number;
    form.querySelector('[type=submit]').disabled = number !== null;
    $('#stop').hidden = number === null;
    $('#stop').disabled = false;
  }

  function draw(node, state, seconds) {
    const draws = drawing(state.pictures, { boxes: true });
    const t = state.trajectory;
    const parts = [element('h3', {}, state.question), ...draws.own(t, state.images), draws.turns(t)];
    if (!state.done) {
      parts.push(element('div.turn.writing', {}, element('span.no', {}, String(t.turns.length + 1)),
        element('p.thought', {}, state.writing || (t.turns.length ? '…' : 'The policy looks at the picture. The first question of a size waits for its programs to be compiled.'))));
    } else {
      parts.push(element(t.answer === null ? 'p.end' : 'p.end.answered', {},
        t.answer === null ? state.ended : element('span', {}, 'Answer: ', element('b', {}, t.answer)),
        element('span.note', {}, ` ${t.turns.length} turn${t.turns.length === 1 ? '' : 's'}, ${seconds.toFixed(1)} s`)));
    }
    node.replaceChildren(...parts);
  }

  async function follow(number, node) {
    const began = performance.now();
    let before = '';
    for (;;) {
      let state;
      try { state = await send(`questions/${number}`); } catch (error) { problem(error.message); break; }
      const now = JSON.stringify(state);
      if (now !== before) draw(node, state, state.seconds === null ? (performance.now() - began) / 1000 : state.seconds);
      before = now;
      if (state.done) break;
      await new Promise(resolve => setTimeout(resolve, EVERY_MS));
    }
    working(null);
  }

  form.addEventListener('submit', async event => {
    event.preventDefault();
    if (asked !== null) return;
    if (!text.value.trim()) { problem('There is no question; type one.'); text.focus(); return; }
    problem('');
    try {
      const { number } = await json('questions', { question: text.value, pictures: pictures.map(p => p.sha) });
      const node = element('article');
      $('#asked .empty')?.remove();
      $('#asked').prepend(node);
      working(number);
      follow(number, node);
    } catch (error) { problem(error.message); }
  });
  text.addEventListener('keydown', event => {
    if (event.key === 'Enter' && !event.shiftKey) { event.preventDefault(); form.requestSubmit(); }
  });
  $('#stop').addEventListener('click', async () => {
    $('#stop').disabled = true;
    try { await json(`questions/${asked}/stop`, {}); } catch (error) { problem(error.message); }
  });
})();
