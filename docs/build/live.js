// The model of docs/build/live.py at work: from x_t to v, and from noise to an image.
"use strict";

const settings = JSON.parse(document.getElementById("settings").textContent);
const { embed_dim: D, depth, num_heads: heads, patch_size: p, in_channels: C, steps } = settings;
const side = settings.img_size, grid = side / p, N = grid * grid, rows = 4 * Math.ceil(N / 4);
const stored = atob(document.getElementById("numbers").textContent);
const numbers = new Float32Array(Uint8Array.from(stored, byte => byte.charCodeAt(0)).buffer);

// ---- The model (docs/6-transformer.md) ----------------------------------------------------------
// part("0.keys", 3) is the row 3 of what docs/build/live.py has stored under "0.keys".
function part(name, ...index) {
  let [start, shape] = settings.places[name], size = shape.reduce((a, b) => a * b);
  index.forEach((i, axis) => start += i * (size /= shape[axis]));
  return numbers.subarray(start, start + size);
}

// x W^T + b. Two columns by four rows at a time: a number that is read serves several products.
function linear(x, name) {
  const W = part(`${name}.weight`), b = part(`${name}.bias`);
  const outs = b.length, ins = W.length / outs, y = new Float32Array(rows * outs);
  for (let o = 0; o < outs; o += 2)
    for (let n = 0; n < rows; n += 4) {
      const u = o * ins, w = u + ins, x0 = n * ins, x1 = x0 + ins, x2 = x1 + ins, x3 = x2 + ins;
      let a0 = b[o], a1 = a0, a2 = a0, a3 = a0, b0 = b[o + 1], b1 = b0, b2 = b0, b3 = b0;
      for (let i = 0; i < ins; i++) {
        const left = W[u + i], right = W[w + i];
        const in0 = x[x0 + i], in1 = x[x1 + i], in2 = x[x2 + i], in3 = x[x3 + i];
        a0 += left * in0, a1 += left * in1, a2 += left * in2, a3 += left * in3;
        b0 += right * in0, b1 += right * in1, b2 += right * in2, b3 += right * in3;
      }
      const at = n * outs + o;
      y[at] = a0, y[at + outs] = a1, y[at + 2 * outs] = a2, y[at + 3 * outs] = a3;
      if (o + 1 < outs) y[at + 1] = b0, y[at + outs + 1] = b1, y[at + 2 * outs + 1] = b2, y[at + 3 * outs + 1] = b3;
    }
  return y;
}

// (1 + scale) LN(x) + shift [DIT-1]
function norm(x, scaleAndShift) {
  const y = new Float32Array(x.length);
  for (let n = 0; n < rows * D; n += D) {
    let mean = 0, variance = 1e-5;
    for (let i = 0; i < D; i++) mean += x[n + i] / D;
    for (let i = 0; i < D; i++) variance += (x[n + i] - mean) ** 2 / D;
    const size = Math.sqrt(variance);
    for (let i = 0; i < D; i++)
      y[n + i] = (1 + scaleAndShift[i]) * (x[n + i] - mean) / size + scaleAndShift[D + i];
  }
  return y;
}

// softmax(Q K^T / sqrt(d_head)) V [ATTN-3] [ATTN-6]. `wide`: how long a row of q is, of k and v.
// The mask has a 1 for each real token. A [N, M], if given, gathers the mean weights.
function attend({ q, k, v, wide }, mask, A) {
  const y = new Float32Array(rows * D), d = D / heads, M = mask.length, shares = Array(M);
  for (let h = 0; h < D; h += d)
    for (let n = 0; n < N; n++) {
      let total = 0;
      for (let m = 0; m < M; m++) {
        let score = 0;
        for (let i = h; i < h + d; i++) score += q[n * wide.q + i] * k[m * wide.k + i];
        total += shares[m] = mask[m] * Math.exp(score / Math.sqrt(d));
      }
      for (let m = 0; m < M; m++) {
        if (A) A[n * M + m] += shares[m] / total / heads / depth;
        for (let i = h; i < h + d; i++) y[n * D + i] += (shares[m] / total) * v[m * wide.k + i];
      }
    }
  return y;
}

// x times the share of a Gaussian below x, by Abramowitz & Stegun 7.1.26
function gelu(x) {
  const z = Math.abs(x) / Math.SQRT2, s = 1 / (1 + 0.3275911 * z);
  const inner = 1.421413741 + s * (1.061405429 * s - 1.453152027);
  const rest = x * s * (0.254829592 + s * (s * inner - 0.284496736)) * Math.exp(-z * z) / 2;
  return x > 0 ? x - rest : rest;
}

// feature (i p + j) C + l of patch n is pixel (i, j) of its square, channel l [PATCH-1]
function eachPixel(visit) {
  for (let n = 0; n < N; n++)
    for (let f = 0; f < p * p * C; f++) {
      const row = Math.floor(n / grid) * p + Math.floor(f / (p * C));
      const column = (n % grid) * p + (Math.floor(f / C) % p);
      visit(n * p * p * C + f, ((f % C) * side + row) * side + column);
    }
}

// v of an image at a step, for a text -> { v, A }: A [N, M] is the mean over blocks and heads.
function answer(image, step, text) {
  const everyPatch = new Float32Array(N).fill(1), mask = part("mask", text);
  const A = new Float32Array(N * mask.length), v = new Float32Array(image.length);
  const patches = new Float32Array(rows * p * p * C), places = part("positions");
  eachPixel((feature, pixel) => patches[feature] = image[pixel]);
  let x = linear(patches, "embed").map((value, i) => value + places[i]);
  const add = y => x = x.map((value, i) => value + y[i]);
  for (let n = 0; n < depth; n++) {
    const normed = which => norm(x, part(`${n}.norms`, step, which));
    const qkv = linear(normed(0), `${n}.qkv`);
    const wide = { q: 3 * D, k: 3 * D };
    const own = { q: qkv, k: qkv.subarray(D), v: qkv.subarray(2 * D), wide };
    add(linear(attend(own, everyPatch), `${n}.out`));
    const [k, v] = [part(`${n}.keys`, text), part(`${n}.values`, text)];
    const read = { q: linear(normed(1), `${n}.query`), k, v, wide: { q: D, k: D } };
    add(linear(attend(read, mask, A), `${n}.read`));
    add(linear(linear(normed(2), `${n}.wide`).map(gelu), `${n}.narrow`));
  }
  const out = linear(norm(x, part("norm")), "final");
  eachPixel((feature, pixel) => v[pixel] = out[feature]);
  return { v, A };
}

// One Euler step from x with the scale w -> the next x, the mean image x_t - t v, and A [CFG-1].
function takeStep(x, step, text, w) {
  const t = 1 - step / steps, { v: cond, A } = answer(x, step, text);
  const { v: uncond } = answer(x, step, settings.captions.length);
  const v = uncond.map((value, i) => value + w * (cond[i] - value));
  const back = time => x.map((value, i) => value - time * v[i]);
  return { x: back(1 / steps), mean: back(t), A };
}

// ---- The page -----------------------------------------------------------------------------------
const byId = id => document.getElementById(id), form = document.querySelector("form");
const MOST = 10; // the largest w
const state = { caption: 0, step: steps, done: 0, turn: 0, scales: Array(steps).fill(3) };
const walk = { x: [part("noise")], mean: [], A: [] }; // of each step: x_t, mean image, attention

// From step n on, a step a frame, so that the page stays alive. A later call ends an earlier one.
async function walkFrom(n) {
  const turn = ++state.turn;
  for (let k = n; k < steps; k++) {
    const { x, mean, A } = takeStep(walk.x[k], k, state.caption, state.scales[k]);
    [walk.x[k + 1], walk.mean[k], walk.A[k], state.done] = [x, mean, A, k + 1];
    show();
    await new Promise(requestAnimationFrame);
    if (turn != state.turn) return;
  }
}

const shade = value => Math.max(0, Math.min(255, (value + 1) * 127.5));
function paint(canvas, image, left = 0, top = 0, colour = shade) {
  const pixels = new ImageData(side, side), size = side * side;
  for (let i = 0; i < size; i++)
    pixels.data.set([...[0, 1, 2].map(c => colour(image[(c % C) * size + i], i, c)), 255], 4 * i);
  canvas.getContext("2d").putImageData(pixels, left, top);
}

// The map of a token over the mean image, as bright as its brightest patch; its share in numbers.
function showToken(tile, m, mean, A) {
  const all = A.length / N, weights = Array.from({ length: N }, (_, n) => A[n * all + m]);
  const most = Math.max(...weights), share = weights.reduce((a, b) => a + b) / N;
  tile.querySelector("span").textContent = Math.round(100 * share) + "%";
  paint(tile.querySelector("canvas"), mean, 0, 0, (value, i, c) => {
    const patch = Math.floor(i / side / p) * grid + Math.floor((i % side) / p);
    return 0.35 * shade(value) + ([165, 105, 25][c] * weights[patch]) / most;
  });
}

function show() {
  const shown = Math.min(state.step, state.done), n = Math.min(shown, state.done - 1);
  paint(byId("image"), walk.x[shown]);
  paint(byId("mean"), walk.mean[n]);
  [...byId("words").children].forEach((tile, m) => showToken(tile, m, walk.mean[n], walk.A[n]));
  for (let k = 0; k < state.done; k++) {
    paint(byId("strip"), walk.x[k], k * (side + 1), 0);
    paint(byId("strip"), walk.mean[k], k * (side + 1), side + 1);
  }
  byId("bars").replaceChildren(...state.scales.map((w, k) => {
    const bar = document.createElement("i");
    bar.style.height = `${2 + (98 * w) / MOST}%`;
    bar.className = k == n ? "now" : "";
    return bar;
  }));
  const values = { step: shown, own: state.scales[n] };
  for (const name in values) form[name].value = form[`${name}-shown`].value = values[name];
  form["t-shown"].value = (1 - shown / steps).toFixed(2);
  form["w-shown"].value = form.w.value;
}

function choose(caption) {
  state.caption = caption;
  byId("words").replaceChildren(...settings.tokens[caption].map(token => {
    const tile = document.createElement("div");
    tile.innerHTML = `<canvas width="${side}" height="${side}"></canvas><b></b> <span></span>`;
    tile.querySelector("b").textContent = token;
    return tile;
  }));
  state.step = steps;
  walkFrom(0);
}

function setScale(n, w) { // of step n alone
  state.scales[n] = w;
  walkFrom(Math.min(n, state.done));
}

const changes = {
  caption: choose,
  step: step => (state.step = step, show()),
  w: w => (state.scales.fill(w), walkFrom(0)),
  own: w => setScale(Math.min(state.step, steps - 1), w),
};
form.addEventListener("input", ({ target }) => changes[target.name](Number(target.value)));
byId("again").addEventListener("click", () => choose(state.caption));
byId("noise").addEventListener("click", () => {
  const radius = () => Math.sqrt(-2 * Math.log(1 - Math.random()));
  walk.x[0] = walk.x[0].map(() => radius() * Math.cos(2 * Math.PI * Math.random()));
  choose(state.caption);
});
for (const kind of ["pointerdown", "pointermove"])
  byId("bars").addEventListener(kind, event => {
    const box = byId("bars").getBoundingClientRect(), at = (event.clientX - box.left) / box.width;
    const w = MOST * (1 - (event.clientY - box.top) / box.height), n = Math.floor(at * steps);
    if (!event.buttons || n < 0 || n >= steps) return;
    byId("bars").setPointerCapture(event.pointerId);
    setScale(n, Math.max(0, Math.min(MOST, Math.round(2 * w) / 2)));
  });

for (const id of ["image", "mean"]) [byId(id).width, byId(id).height] = [side, side];
[byId("strip").width, byId("strip").height] = [steps * (side + 1) - 1, 2 * side + 1];
byId("captions").append(...settings.captions.map((caption, i) => {
  const label = document.createElement("label");
  label.innerHTML = `<input type="radio" name="caption" value="${i}"><span></span>`;
  label.querySelector("span").textContent = caption.slice(settings.common.length).trim();
  return label;
}));
byId("common").textContent = settings.common;
form.caption.value = Math.min(3, settings.captions.length - 1);
choose(Number(form.caption.value));
