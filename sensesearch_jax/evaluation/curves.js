// Reading values off the learning curves: a cursor that follows the pointer, the values beside the title.
'use strict';

function readCurves(root) {
  for (const figure of root.querySelectorAll('.curve')) readCurve(figure);
}

function readCurve(figure) {
  const curves = JSON.parse(figure.dataset.curves);
  const share = figure.dataset.share === '1';
  const area = figure.querySelector('.area');
  const output = figure.querySelector('output');
  const at = figure.querySelector('.at');
  const resting = [...output.children].map(span => span.textContent);
  const first = Math.min(...curves.map(c => c.steps[0]));
  const last = Math.max(...curves.map(c => c.steps[c.steps.length - 1]));
  const digits = value => Math.abs(value) >= 1 && Math.abs(value) < 10 ? 4 : 3;
  const text = value => (share ? `${+(100 * value).toPrecision(3)} %` : String(+value.toPrecision(digits(value)))).replace('-', '−');
  const cursor = document.createElement('div');
  cursor.className = 'cursor';
  cursor.hidden = true;
  area.append(cursor);

  area.addEventListener('pointermove', event => {
    const across = (event.clientX - area.getBoundingClientRect().left) / area.clientWidth;
    const wanted = first + Math.min(Math.max(across, 0), 1) * (last - first);
    let step = first;
    curves.forEach((curve, i) => {
      let nearest = 0;
      curve.steps.forEach((s, j) => { if (Math.abs(s - wanted) < Math.abs(curve.steps[nearest] - wanted)) nearest = j; });
      output.children[i].textContent = `${curve.label} ${text(curve.smooth[nearest])} (${text(curve.raw[nearest])})`;
      if (i === 0) step = curve.steps[nearest];
    });
    at.textContent = `step ${step}`;
    cursor.hidden = false;
    cursor.style.left = `${last > first ? 100 * (step - first) / (last - first) : 50}%`;
  });
  area.addEventListener('pointerleave', () => {
    resting.forEach((value, i) => { output.children[i].textContent = value; });
    at.textContent = 'step';
    cursor.hidden = true;
  });
}

readCurves(document);
