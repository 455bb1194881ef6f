// The field of docs/build/field.html: dots in the plane, and how noise finds them. Nothing is
// trained: the velocities are the exact model's [FLOW-6].
"use strict";

const HEIGHT = 4.4; // of the part of the plane that is shown
const field = {
  // E[x0 | x, t] over some dots: their mean, weighted by how likely x comes from each.
  mean(x, t, dots) {
    const far = dots.map(dot => field.squareTo(x, t, dot) / (2 * t * t)), least = Math.min(...far);
    const shares = far.map(each => Math.exp(least - each));
    const sum = values => values.reduce((a, b) => a + b);
    return [0, 1].map(k => sum(shares.map((share, i) => share * dots[i][k])) / sum(shares));
  },
  squareTo: (x, t, dot) => (x[0] - (1 - t) * dot[0]) ** 2 + (x[1] - (1 - t) * dot[1]) ** 2,

  // v_uncond + w (v_cond - v_uncond) [CFG-1], where the word leaves the `chosen` of all dots.
  velocity(x, t, all, chosen, w) {
    const uncond = field.mean(x, t, all), cond = field.mean(x, t, chosen);
    return [0, 1].map(k => (x[k] - uncond[k] - w * (cond[k] - uncond[k])) / t);
  },

  // The states from the noise x at t = 1 to t = 0 [SAMPLE-2] [SAMPLE-3]. There is no velocity at 0:
  // Heun's last step is Euler's.
  walk(x, steps, solver, velocity) {
    const states = [x], go = (x, v) => x.map((value, k) => value - v[k] / steps);
    for (let n = 0; n < steps; n++) {
      let v = velocity(x, 1 - n / steps);
      if (solver == "heun" && n < steps - 1) {
        const next = velocity(go(x, v), 1 - (n + 1) / steps);
        v = v.map((value, k) => (value + next[k]) / 2);
      }
      states.push((x = go(x, v)));
    }
    return states;
  },
};

// ---- Noises and dots
// 24 noises, spread evenly through a Gaussian.
field.noises = [...Array(24).keys()].map(i => {
  const radius = Math.sqrt(-2 * Math.log(1 - (i + 0.5) / 24)), angle = 0.7 + 2.4 * i;
  return [radius * Math.cos(angle), radius * Math.sin(angle)];
});

// A dot is [x, y, word]; the lower is word 0, the upper 1, and 2 is no word.
const arc = (x, y, size, word) => [0, 1, 2, 3, 4, 5, 6].map(i =>
  [x + size * Math.cos((Math.PI * i) / 6), y + size * Math.sin((Math.PI * i) / 6), word]);
field.sets = {
  two: () => [[0, -1, 0], [0, 1, 1]],
  moons: () => [...arc(0.5, 0.3, -1.1, 0), ...arc(-0.5, -0.3, 1.1, 1)],
};

// ---- The picture
field.draw = (figure, state) => {
  const canvas = figure.querySelector("canvas"), pen = canvas.getContext("2d");
  const { clientWidth: width, clientHeight: height } = canvas, { t, dots, word, w } = state;
  const scale = height / HEIGHT, spot = ([x, y]) => [width / 2 + scale * x, height / 2 - scale * y];
  const colour = name => getComputedStyle(figure).getPropertyValue(name).split(" ");
  const [ink, ...words] = ["--dark", "--lower", "--upper"].map(colour);
  const chosen = dots.filter(dot => word == 2 || dot[2] == word);
  const velocity = (x, t) => field.velocity(x, t, dots, chosen, w);
  [canvas.width, canvas.height] = [width * devicePixelRatio, height * devicePixelRatio];
  pen.scale(devicePixelRatio, devicePixelRatio);

  function stroke(points, colour, thick, alpha) {
    [pen.globalAlpha, pen.strokeStyle, pen.lineWidth] = [alpha, `rgb(${colour})`, thick];
    pen.beginPath();
    for (const point of points) pen.lineTo(...spot(point));
    pen.stroke();
  }
  function disc(point, radius, colour, alpha = 1) {
    [pen.globalAlpha, pen.fillStyle] = [alpha, `rgb(${colour})`];
    pen.beginPath();
    pen.arc(...spot(point), radius, 0, 7);
    pen.fill();
  }

  // Where x_t is likely, P(x_t) P(word | x_t)^w, in the colours of the words it belongs to.
  function cloud() {
    const image = new ImageData(120, 90), cells = [], spread = 2 * Math.max(t, 0.06) ** 2;
    for (let i = 0; i < 120 * 90; i++) {
      const x = [(i % 120) - 60, 45 - Math.floor(i / 120)].map(cell => (cell * HEIGHT) / 90);
      const near = [1e-30, 1e-30];
      for (const dot of dots) near[dot[2]] += Math.exp(-field.squareTo(x, t, dot) / spread);
      const sum = near[0] + near[1];
      cells.push([sum * ((near[word] ?? sum) / sum) ** w, near[1] / sum]);
    }
    const most = Math.max(...cells.map(cell => cell[0]));
    cells.forEach(([likely, upper], i) => {
      const mixed = [0, 1, 2].map(k => (1 - upper) * words[0][k] + upper * words[1][k]);
      image.data.set([...mixed, 150 * (likely / most) ** 0.7], 4 * i);
    });
    const small = new OffscreenCanvas(120, 90);
    small.getContext("2d").putImageData(image, 0, 0);
    pen.drawImage(small, 0, 0, width, height);
  }
  function arrow(x) { // the way that a step goes: against v, as t falls
    const v = velocity(x, Math.max(t, 0.05)), share = Math.min(0.16, 0.33 / Math.hypot(...v));
    const by = (ahead, aside) =>
      [x[0] - share * (ahead * v[0] + aside * v[1]), x[1] - share * (ahead * v[1] - aside * v[0])];
    stroke([x, by(1, 0)], ink, 1.2, 0.35);
    stroke([by(0.7, 0.2), by(1, 0), by(0.7, -0.2)], ink, 1.2, 0.35);
  }
  function line(noise, dot) {
    stroke([noise, dot], words[dot[2]], 1.2, 0.4);
    disc([0, 1].map(k => (1 - t) * dot[k] + t * noise[k]), 4, words[dot[2]]);
  }
  function path(noise) { // in the colour of the dot where it ends, if it does
    const states = field.walk(noise, state.steps, state.solver, velocity);
    const place = (1 - t) * state.steps, n = Math.min(Math.floor(place), state.steps - 1);
    const at = states[n].map((from, k) => from + (place - n) * (states[n + 1][k] - from));
    const dot = dots.find(dot => field.squareTo(states.at(-1), 0, dot) < 0.01);
    const colour = dot ? words[dot[2]] : ink;
    stroke(states, colour, 1.2, 0.3);
    stroke([...states.slice(0, n + 1), at], colour, 2, 0.9);
    if (state.steps <= 12) for (const each of states) disc(each, 2.5, colour, 0.8);
    disc(at, 4, colour);
  }
  cloud();
  if (state.show.includes("velocities"))
    for (let i = 0; i < 99; i++) arrow([(i % 11) / 2 - 2.5, Math.floor(i / 11) / 2 - 2]);
  if (state.show.includes("lines"))
    field.noises.forEach((noise, i) => line(noise, chosen[i % chosen.length]));
  if (state.show.includes("paths")) field.noises.forEach(path);
  for (const dot of dots) disc(dot, 9, ink), disc(dot, 7, words[dot[2]]);
};

// ---- What moves it
field.start = figure => {
  const [canvas, form, button] = ["canvas", "form", "button"].map(tag => figure.querySelector(tag));
  const { set, panel } = figure.dataset;
  const state = { set, dots: field.sets[set](), t: 1, w: 1, steps: 50, solver: "euler" };
  let dragged, playing = 0;
  function show() {
    field.draw(figure, state);
    for (const name of ["panel", "set", "word", "solver"]) form[name].value = state[name];
    for (const name of ["t", "w", "steps"])
      form[name].value = form[`${name}-shown`].value = Number(state[name].toFixed(2));
    for (const box of form.show) box.checked = state.show.includes(box.value);
    form.w.disabled = state.word == 2;
    button.textContent = playing ? "pause" : "play";
    figure.querySelectorAll("figcaption p").forEach((p, i) => p.hidden = i != state.panel);
  }
  function pause() {
    cancelAnimationFrame(playing);
    playing = 0;
    show();
  }
  function play() { // t runs from 1 to 0 in four seconds, and stays there
    cancelAnimationFrame(playing);
    const { matches: still } = matchMedia("(prefers-reduced-motion: reduce)");
    const start = performance.now() + 400;
    (function frame(now) {
      state.t = still ? 0 : Math.min(1, Math.max(0, 1 - (now - start) / 4000));
      playing = state.t > 0 ? requestAnimationFrame(frame) : 0;
      show();
    })(0);
  }
  function change(name, value) {
    state[name] = isNaN(value) ? value : Number(value);
    if (name == "panel") Object.assign(state, JSON.parse(form.panel[value].dataset.state));
    if (name == "panel") play();
    if (name == "set") state.dots = field.sets[value]();
    if (name == "t") pause();
    else show();
  }
  form.addEventListener("input", ({ target }) => {
    if (target.name != "show") return change(target.name, target.value);
    state.show = [...form.show].filter(box => box.checked).map(box => box.value);
    show();
  });
  button.addEventListener("click", () => playing ? pause() : play());

  // A dot is dragged by mouse or finger; a finger elsewhere scrolls the page.
  function under({ clientX, clientY }) {
    const box = canvas.getBoundingClientRect(), scale = box.height / HEIGHT;
    const x = (clientX - box.left - box.width / 2) / scale;
    return [x, (box.top + box.height / 2 - clientY) / scale];
  }
  const near = at => state.dots.find(dot => field.squareTo(under(at), 0, dot) < 0.05);
  canvas.addEventListener("pointerdown", event => {
    dragged = near(event);
    if (dragged) canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", event => {
    canvas.style.cursor = near(event) ? "grab" : "";
    if (!dragged) return;
    under(event).forEach((to, k) => dragged[k] = Math.max(-2, Math.min(2, to)));
    show();
  });
  canvas.addEventListener("lostpointercapture", () => dragged = undefined);
  canvas.addEventListener("touchstart", event => near(event.touches[0]) && event.preventDefault(),
    { passive: false });

  change("panel", panel - 1);
  new ResizeObserver(show).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
};

document.querySelectorAll("figure.field").forEach(field.start);
