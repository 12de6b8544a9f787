// The player: the same stream twice, without and with parity, and a chart of what stays lost.

import { Stream } from './fec.js';

const here = new URL(import.meta.url);
const url = here.origin + here.pathname.replace(/\/page\.js$/, '');
const playOut = 3; // pictures that wait for their repair before they are shown

// A View shows test pictures, tile by tile: "BTV1", picture 32 bits, column, row, columns, rows 8 bits each, and 16 by
// 16 pixels of red, green and blue. Tiles that did not come stay black.
class View {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext('2d');
    this.pictures = new Map(); // by number
    this.shown = 0;
    this.whole = 0; // pictures that were shown without a hole
    this.holed = 0;
  }

  take(bytes) {
    if (bytes.length !== 12 + 768 || bytes[0] !== 0x42 || bytes[1] !== 0x54 || bytes[2] !== 0x56 || bytes[3] !== 0x31) return;
    const n = new DataView(bytes.buffer, bytes.byteOffset).getUint32(4);
    const [column, row, columns, rows] = bytes.subarray(8, 12);
    if (n < this.shown || column >= columns || row >= rows) return;
    if (!this.pictures.has(n)) this.pictures.set(n, { columns, rows, tiles: new Map() });
    this.pictures.get(n).tiles.set(row * columns + column, bytes.slice(12));
    const newest = Math.max(...this.pictures.keys());
    for (const old of [...this.pictures.keys()].sort((a, b) => a - b)) if (old <= newest - playOut) this.show(old);
  }

  show(n) {
    const { columns, rows, tiles } = this.pictures.get(n);
    this.pictures.delete(n);
    this.shown = n;
    this.canvas.width = 16 * columns;
    this.canvas.height = 16 * rows;
    const image = this.context.createImageData(16 * columns, 16 * rows);
    for (let i = 3; i < image.data.length; i += 4) image.data[i] = 255;
    for (const [at, tile] of tiles) {
      const left = 16 * (at % columns);
      const top = 16 * Math.floor(at / columns);
      for (let p = 0; p < 256; p++) {
        const to = 4 * ((top + (p >> 4)) * image.width + left + (p & 15));
        image.data.set(tile.subarray(3 * p, 3 * p + 3), to);
      }
    }
    this.context.putImageData(image, 0, 0);
    if (tiles.size === columns * rows) this.whole++;
    else this.holed++;
  }
}

function open(name, query) {
  const view = new View(document.getElementById(`${name}-view`));
  const state = document.getElementById(`${name}-state`);
  const stream = new Stream(url + query, {
    packet: (bytes) => view.take(bytes),
    state: (text) => { state.textContent = text; },
  });
  return { name, view, stream, last: { ...stream.counts }, row: document.getElementById(`${name}-row`).cells };
}

const plain = open('plain', '?fec=off');
const repaired = open('fec', '');
const samples = []; // [without, before, after], shares of each half second

function share(part, whole) {
  return whole > 0 ? part / whole : 0;
}

// sample returns the shares of symbols lost and of packets that stayed lost since the last sample.
function sample(player) {
  const now = { ...player.stream.counts };
  const was = player.last;
  player.last = now;
  const kept = share(now.residual, now.residual + now.delivered);
  [now.delivered, now.lost, now.repaired, now.residual].forEach((n, i) => { player.row[i + 1].textContent = n; });
  player.row[5].textContent = `${(100 * kept).toPrecision(2)} %`;
  const residual = now.residual - was.residual;
  return [share(now.lost - was.lost, now.expected - was.expected), share(residual, residual + now.delivered - was.delivered)];
}

function draw() {
  const canvas = document.getElementById('chart');
  const scale = devicePixelRatio;
  const width = (canvas.width = canvas.clientWidth * scale);
  const height = (canvas.height = canvas.clientHeight * scale);
  const c = canvas.getContext('2d');
  const colour = (name) => getComputedStyle(document.querySelector(name)).color;
  const text = getComputedStyle(document.body).color;
  const top = Math.max(0.02, ...samples.map((s) => Math.max(s[0], s[1], s[2]))) * 1.15;
  const left = 48 * scale;
  const bottom = height - 20 * scale;
  const y = (v) => bottom - (bottom - 8 * scale) * (v / top);
  c.font = `${12 * scale}px system-ui, sans-serif`;
  c.textAlign = 'right';
  for (let i = 0; i <= 4; i++) {
    const v = (top * i) / 4;
    c.strokeStyle = c.fillStyle = text;
    c.globalAlpha = 0.2;
    c.beginPath();
    c.moveTo(left, y(v));
    c.lineTo(width, y(v));
    c.stroke();
    c.globalAlpha = 0.8;
    c.fillText(`${(100 * v).toFixed(1)} %`, left - 6 * scale, y(v) + 4 * scale);
  }
  const x = (i) => left + ((width - left) * (i + 120 - samples.length)) / 119;
  const line = (at, style, dash) => {
    c.globalAlpha = 1;
    c.strokeStyle = style;
    c.lineWidth = 2 * scale;
    c.setLineDash(dash.map((d) => d * scale));
    c.beginPath();
    samples.forEach((s, i) => c.lineTo(x(i), y(s[at])));
    c.stroke();
    c.setLineDash([]);
  };
  line(0, colour('.before'), [2, 3]);
  line(1, colour('.before'), []);
  line(2, colour('.after'), []);
  c.textAlign = 'left';
  c.fillStyle = text;
  c.fillText('last minute · lost on the way (orange) · stayed lost without repair (dotted) · stayed lost after repair (green)', left, height - 4 * scale);
}

setInterval(() => {
  const [, without] = sample(plain);
  const [before, after] = sample(repaired);
  samples.push([without, before, after]);
  if (samples.length > 120) samples.shift();
  draw();
}, 500);

// What a person at the console asks, and tests.
globalThis.berm = { plain, repaired, samples };
