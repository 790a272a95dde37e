// The trajectory viewer. All text enters the page as text nodes, never as markup: what tools returned is data.
'use strict';
(() => {
  const root = document.getElementById('viewer');
  if (!root) return;
  const data = JSON.parse(document.getElementById('viewer-data').textContent);
  const form = root.querySelector('form');
  const list = root.querySelector('.list ol');
  const count = root.querySelector('.count');
  const article = root.querySelector('article');
  const label = name => data.labels[name] || name;
  const toggles = { boxes: true, truth: false, beside: false };
  let visible = [];
  let current = null;
  let started = false; // the address names a trajectory only once the reader has chosen one

  // element('p.note', {title: …}, child, …): a string child becomes text.
  function element(selector, properties, ...children) {
    const [tag, ...classes] = selector.split('.');
    const node = document.createElement(tag);
    if (classes.length) node.className = classes.join(' ');
    for (const [name, value] of Object.entries(properties || {})) {
      if (name.includes('-') || name === 'role') node.setAttribute(name, value); else node[name] = value;
    }
    node.append(...children.filter(child => child !== null && child !== undefined && child !== ''));
    return node;
  }

  // ---- one trajectory ----

  const outcome = t => t === undefined ? null : t.right === null ? 'void' : t.right ? 'right' : 'wrong';
  const SIGN = { right: '✓', wrong: '✗', void: '○' };
  const WORDS = { right: 'right', wrong: 'wrong', void: 'not counted' };

  function placed(node, box) {
    const [x0, y0, x1, y1] = box.map(value => 100 * value);
    Object.assign(node.style, { left: `${x0}%`, top: `${y0}%`, width: `${x1 - x0}%`, height: `${y1 - y0}%` });
    return node;
  }

  function frame(image, alt) {
    const uri = data.pictures[image.sha];
    const node = element('div.frame', {}, uri
      ? element('img', { src: uri, alt })
      : element('div.none', {}, `picture not kept (${image.width}×${image.height})`));
    node.style.aspectRatio = `${image.width} / ${image.height}`;
    if (toggles.boxes) {
      for (const box of image.boxes) {
        if (!box.box) continue;
        const mark = element('div.box', { title: `crop of turn ${box.turn}` }, element('b', {}, String(box.turn)));
        if (!box.own) mark.classList.add('inner');
        if (box.box[1] < 0.06) mark.classList.add('low');
        node.append(placed(mark, box.box));
      }
    }
    if (image.truth) node.append(placed(element('div.truth', { title: 'the object asked for' }), image.truth));
    return node;
  }

  function textBlock(text) {
    const block = element('div.text', {}, text.trim());
    if (!block.textContent) return null;
    if (text.length < 420 && text.split('\n').length < 7) return block;
    block.classList.add('clip');
    const more = element('button.more', { type: 'button' }, 'Show all');
    more.addEventListener('click', () => { block.classList.remove('clip'); more.remove(); });
    return element('div', {}, block, more);
  }

  function observation(turn, trajectory) {
    const block = element(turn.ok ? 'div.observation' : 'div.observation.failed');
    let thumbs = null; // the row of search results under construction
    let title = null; // the text just placed, if it is short enough to be the title of what follows
    for (const part of turn.parts) {
      if (typeof part === 'object' && part.thumbnail) {
        const uri = data.pictures[part.thumbnail];
        const caption = title ? title.textContent : '';
        if (title) title.remove();
        if (!thumbs) block.append(thumbs = element('div.thumbs'));
        title = null;
        thumbs.append(element('figure.thumb', {},
          element('div', {}, uri ? element('img', { src: uri, alt: caption || 'search result' }) : '–'),
          element('figcaption', {}, caption)));
        continue;
      }
      if (title) thumbs = null; // that text was not a title after all
      title = null;
      if (typeof part === 'object') {
        thumbs = null;
        const image = trajectory.images[part.image - 1];
        const picture = frame(image, `image ${part.image}`);
        picture.style.width = `min(100%, ${Math.min(420, Math.round(300 * Math.max(0.6, image.width / image.height)))}px)`;
        block.append(element('figure', {}, picture,
          element('figcaption', {}, `image ${part.image}, ${image.width}×${image.height}`)));
        continue;
      }
      const text = textBlock(part);
      if (!text) continue;
      block.append(text);
      if (part.trim().length < 100 && !part.trim().includes('\n')) title = text; else thumbs = null;
    }
    if (turn.seconds >= 0.1) block.append(element('p.waiting', {}, `${turn.seconds.toFixed(1)} s`));
    return block;
  }

  const TOOLS = { image_crop: 'crop', image_search: 'image search', text_search: 'text search' };

  function turnItem(turn, number, trajectory) {
    const call = element('div.call');
    if (turn.error !== undefined) {
      call.append(element('span.error', {}, `not an action: ${turn.error.replaceAll('_', ' ')}`), element('pre', {}, turn.raw));
    } else if (turn.answer !== undefined) {
      call.append(element('code', {}, 'answer'), ' ', element('b', {}, turn.answer));
    } else {
      call.append(element('code', {}, TOOLS[turn.tool] || turn.tool), ' ', turn.arguments);
    }
    const item = element(turn.tool === 'image_crop' ? 'li.turn.crop' : 'li.turn', {}, element('span.no', {}, String(number)));
    if (turn.thought) item.append(element('p.thought', {}, turn.thought));
    item.append(call);
    if (turn.parts) item.append(observation(turn, trajectory));
    return item;
  }

  function column(name, question, titled) {
    const trajectory = question.runs[name];
    const node = element('div.column', { 'data-run': name });
    node.classList.add(data.colours[name]);
    if (titled) node.append(element('h4', {}, label(name)));
    if (!trajectory) { node.append(element('p.empty', {}, 'This policy was not asked this question.')); return node; }
    const kind = outcome(trajectory);
    trajectory.images.slice(0, question.images).forEach((image, i) => node.append(
      frame(image, question.images > 1 ? `picture ${i + 1} of the question` : 'the picture asked about')));
    if (trajectory.retrieved.length) {
      node.append(element('p.note', {}, 'Search results in the prompt:'), element('div.thumbs', {}, ...trajectory.retrieved.map(sha =>
        element('figure.thumb', {}, element('div', {}, data.pictures[sha]
          ? element('img', { src: data.pictures[sha], alt: 'search result' }) : '–')))));
    }
    const reward = Object.entries(trajectory.reward).filter(([key]) => key !== 'total')
      .map(([key, value]) => `${key.replaceAll('_', ' ')} ${value}`).join(', ');
    node.append(element('div.verdict', {},
      element(`b.is-${kind}`, {}, `${SIGN[kind]} ${WORDS[kind]}`),
      element('span', {}, trajectory.answer === null ? 'no answer' : `“${trajectory.answer}”`),
      trajectory.state === 'ok' ? null : element('span', {}, label(trajectory.state).replaceAll('_', ' ')),
      trajectory.failure ? element('span', {}, trajectory.failure) : null,
      trajectory.reward.total === undefined ? null
        : element('span', { title: reward }, `reward ${trajectory.reward.total} (${reward})`)));
    node.append(element('ol.turns', {}, ...trajectory.turns.map((turn, i) => turnItem(turn, i + 1, trajectory))));
    return node;
  }

  // ---- one question ----

  function stratum(question) {
    const difficulty = /^\d+$/.test(question.difficulty) ? `difficulty ${question.difficulty}` : question.difficulty;
    return [label(question.category), difficulty].filter(Boolean).join(', ');
  }

  function toggle(key, text) {
    const box = element('input', { type: 'checkbox', checked: toggles[key] });
    box.addEventListener('change', () => { toggles[key] = box.checked; show(); });
    return element('label', {}, box, text);
  }

  function tabs(question) {
    return element('div.tabs', { role: 'tablist' }, ...data.runs.filter(name => question.runs[name]).map(name => {
      const kind = outcome(question.runs[name]);
      const tab = element('button', { type: 'button', role: 'tab', 'aria-selected': String(name === form.run.value) },
        `${label(name)} `, element(`span.is-${kind}`, {}, SIGN[kind]));
      tab.classList.add(data.colours[name]);
      tab.addEventListener('click', () => { form.run.value = name; filter(); });
      return tab;
    }));
  }

  function facts(question) {
    const rows = [];
    if (question.choices.length) {
      rows.push(['Options', question.choices.map((c, i) => `${String.fromCharCode(65 + i)}. ${c}`).join(' · ')]);
    }
    rows.push(['Reference', question.answers.join(' / ')]);
    if (question.title) rows.push(['Object', question.title]);
    return element('dl.facts-list', {}, ...rows.flatMap(([name, value]) => [element('dt', {}, name), element('dd', {}, value)]));
  }

  function show() {
    article.replaceChildren();
    root.classList.toggle('side', toggles.beside);
    root.classList.toggle('show-truth', toggles.truth);
    if (!current) { article.append(element('p.empty', {}, 'No trajectory matches.')); return; }
    const runs = toggles.beside ? data.runs.filter(name => current.runs[name]) : [form.run.value];
    article.append(
      element('div.eyebrow', {}, `${stratum(current)} · ${current.id}`),
      element('h3', {}, current.text), facts(current),
      element('div.bar-row', {}, toggles.beside ? element('div') : tabs(current),
        element('div.toggles', {}, toggle('boxes', 'crops'), toggle('truth', 'true box'), toggle('beside', 'side by side'))),
      element(toggles.beside ? 'div.runs.beside' : 'div.runs', {}, ...runs.map(name => column(name, current, toggles.beside))));
    for (const button of list.querySelectorAll('button')) {
      const chosen = button.dataset.id === current.id;
      button.setAttribute('aria-current', String(chosen));
      if (chosen && list.scrollHeight > list.clientHeight) {
        const item = button.parentElement;
        if (item.offsetTop - list.offsetTop < list.scrollTop) list.scrollTop = item.offsetTop - list.offsetTop;
        const under = item.offsetTop - list.offsetTop + item.offsetHeight - list.clientHeight;
        if (under > list.scrollTop) list.scrollTop = under;
      }
    }
    if (started) history.replaceState(null, '', `#trajectory=${encodeURIComponent(form.run.value)}/${encodeURIComponent(current.id)}`);
  }

  // ---- the list ----

  const haystacks = new Map();
  function haystack(question, name) {
    const key = `${name}\n${question.id}`;
    if (!haystacks.has(key)) {
      const trajectory = question.runs[name];
      const texts = trajectory.turns.flatMap(t => [t.thought, t.raw, t.arguments, t.answer, ...(t.parts || []).filter(p => typeof p === 'string')]);
      haystacks.set(key, [question.id, question.text, question.title, ...question.answers, ...question.choices, ...texts].join('\n').toLowerCase());
    }
    return haystacks.get(key);
  }

  function filter() {
    const name = form.run.value;
    const words = form.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    visible = data.questions.filter(question => {
      const trajectory = question.runs[name];
      return trajectory
        && (!form.category.value || question.category === form.category.value)
        && (!form.difficulty.value || question.difficulty === form.difficulty.value)
        && (!form.outcome.value || outcome(trajectory) === form.outcome.value)
        && (!form.state.value || trajectory.state === form.state.value)
        && words.every(word => haystack(question, name).includes(word));
    });
    count.textContent = `${visible.length} question${visible.length === 1 ? '' : 's'}`;
    list.replaceChildren(...visible.map(question => {
      const marks = element('span.marks', {}, ...data.runs.filter(run => question.runs[run]).map(run => {
        const kind = outcome(question.runs[run]);
        return element(`span.is-${kind}`, { title: `${label(run)}: ${WORDS[kind]}` }, SIGN[kind]);
      }));
      const button = element('button', { type: 'button', 'data-id': question.id },
        question.text, element('div.tags', {}, element('span', {}, stratum(question)), marks));
      button.addEventListener('click', () => { current = question; show(); });
      return element('li', {}, button);
    }));
    if (!visible.includes(current)) current = visible[0] || null;
    show();
  }

  function step(by) {
    const next = visible[visible.indexOf(current) + by];
    if (next) { current = next; show(); }
  }

  // ---- start ----

  function options(select, values, all) {
    if (all) select.append(element('option', { value: '' }, 'all'));
    select.append(...values.map(value => element('option', { value }, label(value).replaceAll('_', ' '))));
  }
  const distinct = values => [...new Set(values)].sort();
  options(form.run, data.runs, false);
  options(form.category, distinct(data.questions.map(q => q.category)), true);
  options(form.difficulty, distinct(data.questions.map(q => q.difficulty)), true);
  options(form.state, distinct(data.questions.flatMap(q => Object.values(q.runs).map(t => t.state))), true);
  form.run.value = data.runs.includes('rl') ? 'rl' : data.runs[data.runs.length - 1];
  form.addEventListener('input', filter);
  form.addEventListener('submit', event => event.preventDefault());
  document.addEventListener('keydown', event => {
    if (event.target.closest('input[type=search], select') || event.altKey || event.ctrlKey || event.metaKey) return;
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) { event.preventDefault(); step(by); }
  });
  const wanted = location.hash.match(/^#trajectory=([^/]*)\/(.*)$/);
  if (wanted) {
    const [name, id] = wanted.slice(1).map(decodeURIComponent);
    if (data.runs.includes(name)) form.run.value = name;
    current = data.questions.find(question => question.id === id && question.runs[form.run.value]) || null;
  }
  root.hidden = false;
  filter();
  started = true;
  if (wanted) root.scrollIntoView({ behavior: 'instant' });
})();
