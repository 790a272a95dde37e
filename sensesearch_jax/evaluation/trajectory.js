// Drawing of trajectories. All text enters the page as text nodes, never as markup: what tools returned is data.
'use strict';
const Trajectories = (() => {
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

  const outcome = t => t === undefined ? null : t.right === null ? 'void' : t.right ? 'right' : 'wrong';
  const SIGN = { right: '✓', wrong: '✗', void: '○' };
  const WORDS = { right: 'right', wrong: 'wrong', void: 'not counted' };

  function placed(node, box) {
    const [x0, y0, x1, y1] = box.map(value => 100 * value);
    Object.assign(node.style, { left: `${x0}%`, top: `${y0}%`, width: `${x1 - x0}%`, height: `${y1 - y0}%` });
    return node;
  }

  // Drawers of what trajectories hold: `pictures` are addresses by hash, `toggles.boxes` says whether crops are marked.
  function drawing(pictures, toggles) {
    function frame(image, alt) {
      const uri = pictures[image.sha];
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
          const uri = pictures[part.thumbnail];
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

    function own(trajectory, count) {
      return trajectory.images.slice(0, count).map((image, i) =>
        frame(image, count > 1 ? `picture ${i + 1} of the question` : 'the picture asked about'));
    }

    function turns(trajectory) {
      return element('ol.turns', {}, ...trajectory.turns.map((turn, i) => turnItem(turn, i + 1, trajectory)));
    }

    return { own, turns };
  }

  return { element, outcome, SIGN, WORDS, drawing };
})();
