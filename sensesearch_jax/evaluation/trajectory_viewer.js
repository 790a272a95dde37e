// The trajectory viewer: a list to choose from, and the trajectories of one question.
'use strict';
const { element, outcome, SIGN, WORDS } = Trajectories;

// The viewer in an element; `show` gives it data, and newer data as often as there are, of which it shows the first
// question, by the policy that was chosen before.
function trajectoryViewer(root) {
  const form = root.querySelector('form');
  const list = root.querySelector('.list ol');
  const count = root.querySelector('.count');
  const article = root.querySelector('article');
  const label = name => data.labels[name] || name;
  const toggles = { boxes: true, truth: false, beside: false };
  const haystacks = new Map();
  let data = null;
  let draw = null;
  let visible = [];
  let current = null;
  let started = false; // the address names a trajectory only once the reader has chosen one

  function column(name, question, titled) {
    const trajectory = question.runs[name];
    const node = element('div.column', { 'data-run': name });
    node.classList.add(data.colours[name]);
    if (titled) node.append(element('h4', {}, label(name)));
    if (!trajectory) { node.append(element('p.empty', {}, 'This policy was not asked this question.')); return node; }
    const kind = outcome(trajectory);
    node.append(...draw.own(trajectory, question.images));
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
    node.append(draw.turns(trajectory));
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
      element('div.eyebrow', {}, [stratum(current), current.id].filter(Boolean).join(' · ')),
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
      button.addEventListener('click', () => choose(question));
      return element('li', {}, button);
    }));
    if (!visible.includes(current)) current = visible[0] || null;
    show();
  }

  function step(by) {
    const next = visible[visible.indexOf(current) + by];
    if (next) choose(next);
  }

  function choose(question) {
    current = question;
    root.dispatchEvent(new Event('chosen')); // a page that gives newer data may stop that
    show();
  }

  // ---- start ----

  function options(select, values, all) {
    const chosen = select.value;
    select.replaceChildren(...(all ? [element('option', { value: '' }, 'all')] : []),
      ...values.map(value => element('option', { value }, label(value).replaceAll('_', ' '))));
    if (values.includes(chosen)) select.value = chosen;
  }
  const distinct = values => [...new Set(values)].sort();

  function take(newer) {
    const chosen = data && form.run.value;
    data = newer;
    draw = Trajectories.drawing(data.pictures, toggles);
    haystacks.clear();
    options(form.run, data.runs, false);
    options(form.category, distinct(data.questions.map(q => q.category)), true);
    options(form.difficulty, distinct(data.questions.map(q => q.difficulty)), true);
    options(form.state, distinct(data.questions.flatMap(q => Object.values(q.runs).map(t => t.state))), true);
    form.run.value = data.runs.includes(chosen) ? chosen
      : data.runs.includes('rl') ? 'rl' : (data.first || data.runs)[(data.first || data.runs).length - 1];
    current = null;
    root.hidden = false;
  }

  form.addEventListener('input', filter);
  form.addEventListener('submit', event => event.preventDefault());
  document.addEventListener('keydown', event => {
    if (!data || event.target.closest('input, select, textarea') || event.altKey || event.ctrlKey || event.metaKey) return;
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) { event.preventDefault(); step(by); }
  });

  return {
    show(newer) {
      take(newer);
      filter();
    },
    // The first data, and the trajectory that the address names.
    start(first) {
      take(first);
      const wanted = location.hash.match(/^#trajectory=([^/]*)\/(.*)$/);
      if (wanted) {
        const [name, id] = wanted.slice(1).map(decodeURIComponent);
        if (data.runs.includes(name)) form.run.value = name;
        current = data.questions.find(question => question.id === id && question.runs[form.run.value]) || null;
      }
      filter();
      started = true;
      if (wanted) root.scrollIntoView({ behavior: 'instant' });
    },
  };
}

if (document.getElementById('viewer-data') && document.getElementById('viewer')) {
  trajectoryViewer(document.getElementById('viewer'))
    .start(JSON.parse(document.getElementById('viewer-data').textContent));
}
