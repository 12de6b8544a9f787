// Repairs live streams in a browser: Reed-Solomon over GF(2^8) as RFC 6865 has it for m = 8. A module without
// dependencies:
//
//   import { Stream } from '/live/stage/fec.js';
//   const stream = new Stream('https://edge.example/live/stage', { packet: (bytes, repaired) => … });
//   await stream.closed;
//
// Packets come as they arrive, and rebuilt ones a moment later: who needs them in order numbers them.

const maxSymbols = 255;
const idLength = 6; // SBN 24 bits, ESI 8, k 16
const headLength = 3; // flow 8 bits, length 16
const reordered = 3; // symbols of later blocks that tell that no more of a block are on their way

// Powers and logarithms of alpha = 2 by x^8 + x^4 + x^3 + x^2 + 1. Powers go on, so that sums of logarithms need no
// remainder.
const pow = new Uint8Array(510);
const log = new Uint8Array(256);
for (let i = 0, x = 1; i < 255; i++) {
  pow[i] = pow[i + 255] = x;
  log[x] = i;
  x <<= 1;
  if (x > 255) x ^= 0x11d;
}

function mul(a, b) {
  return a === 0 || b === 0 ? 0 : pow[log[a] + log[b]];
}

// div takes a b that is not zero.
function div(a, b) {
  return a === 0 ? 0 : pow[log[a] + 255 - log[b]];
}

function point(i) {
  return i === 0 ? 0 : pow[i - 1];
}

// addScaled adds c times src to dst: only as far as src goes, since what lies behind is zero.
function addScaled(dst, src, c) {
  if (c === 0) return;
  const shift = log[c];
  for (let i = 0; i < src.length; i++) {
    const b = src[i];
    if (b !== 0) dst[i] ^= pow[log[b] + shift];
  }
}

// coefficients are those of the k packets of a block in the parity of each row: Lagrange's polynomials at the points 0,
// 1, alpha, alpha^2 …
function coefficients(k, rows) {
  const slope = new Uint8Array(k).fill(1);
  for (let c = 0; c < k; c++) {
    for (let o = 0; o < k; o++) if (o !== c) slope[c] = mul(slope[c], point(c) ^ point(o));
  }
  return rows.map((row) => {
    const x = point(k + row);
    let all = 1;
    for (let c = 0; c < k; c++) all = mul(all, x ^ point(c));
    return Uint8Array.from({ length: k }, (_, c) => div(all, mul(x ^ point(c), slope[c])));
  });
}

// solve finds the lost packets of a block: parity less what is known of it is a system with as many unknowns as rows.
// It works in place on equations [coefficients of the lost, bytes].
function solve(a, b) {
  const n = a.length;
  for (let col = 0; col < n; col++) {
    let pivot = col;
    while (pivot < n && a[pivot][col] === 0) pivot++;
    if (pivot === n) return false; // cannot be: any k symbols of a block suffice
    [a[col], a[pivot]] = [a[pivot], a[col]];
    [b[col], b[pivot]] = [b[pivot], b[col]];
    const inverse = div(1, a[col][col]);
    for (let i = 0; i < n; i++) a[col][i] = mul(a[col][i], inverse);
    for (let i = 0; i < b[col].length; i++) b[col][i] = mul(b[col][i], inverse);
    for (let row = 0; row < n; row++) {
      const f = a[row][col];
      if (row === col || f === 0) continue;
      addScaled(a[row], a[col], f);
      addScaled(b[row], b[col], f);
    }
  }
  return true;
}

const pastBlocks = 64;

// Decoder rebuilds packets. It remembers a bounded number of blocks, the newest to arrive.
export class Decoder {
  constructor(deliver, { window = 8, longest = 1200 } = {}) {
    this.deliver = deliver;
    this.window = window;
    this.longest = longest;
    this.blocks = new Map(); // by number, oldest first
    this.past = []; // numbers of the last blocks that were forgotten: what comes late of one is not new
    this.counts = { received: 0, delivered: 0, repaired: 0, residual: 0, lost: 0, expected: 0, bursts: 0, duplicates: 0, refused: 0 };
  }

  // source takes a packet with its ID behind it.
  source(pkt) {
    const at = pkt.length - idLength;
    const id = at >= 0 && readId(pkt, at);
    if (!id || at > this.longest || id.esi >= id.k) return this.refuse();
    const block = this.arrive(id);
    if (!block) return false;
    const known = block.done;
    if (at > 0 && !known) this.hand(pkt.subarray(0, at), false); // none in what fills up a block
    if (!known) {
      const symbol = new Uint8Array(headLength + at);
      symbol[1] = at >> 8;
      symbol[2] = at;
      symbol.set(pkt.subarray(0, at), headLength);
      block.symbols[id.esi] = symbol;
    }
    return this.rebuild(block);
  }

  // repair takes a packet of parity, its ID before it.
  repair(pkt) {
    const id = pkt.length >= idLength + headLength && readId(pkt, 0);
    const length = pkt.length - idLength;
    if (!id || length > this.longest + headLength || id.esi < id.k) return this.refuse();
    const known = this.blocks.get(id.sbn);
    if (known && known.length > 0 && known.length !== length) return this.refuse();
    const block = this.arrive(id);
    if (!block) return false;
    block.repair = Math.max(block.repair, id.esi - id.k + 1);
    block.length = length;
    if (!block.done) block.symbols[id.esi] = pkt.slice(idLength);
    return this.rebuild(block);
  }

  refuse() {
    this.counts.refused++;
    return false;
  }

  arrive(id) {
    let block = this.blocks.get(id.sbn);
    if (!block) {
      if (this.past.includes(id.sbn)) {
        this.counts.duplicates++;
        return null;
      }
      if (this.blocks.size >= this.window) this.forget(this.blocks.keys().next().value);
      block = { k: id.k, seen: new Uint8Array(maxSymbols), have: 0, later: 0, asked: false, repair: 0, length: 0, done: false, symbols: [] };
      this.blocks.set(id.sbn, block);
    }
    if (block.k !== id.k) {
      this.refuse();
      return null;
    }
    if (block.seen[id.esi]) {
      this.counts.duplicates++;
      return null;
    }
    this.counts.received++;
    for (const earlier of this.blocks.values()) {
      if (earlier === block) break;
      earlier.later++;
    }
    block.seen[id.esi] = 1;
    block.have++;
    return block;
  }

  // forget counts what a block has lost.
  forget(sbn) {
    const block = this.blocks.get(sbn);
    this.blocks.delete(sbn);
    this.past.push(sbn);
    if (this.past.length > pastBlocks) this.past.shift();
    let run = false;
    for (let i = 0; i < block.k + block.repair; i++) {
      this.counts.expected++;
      if (block.seen[i]) {
        run = false;
        continue;
      }
      this.counts.lost++;
      if (!run) this.counts.bursts++;
      run = true;
      if (i < block.k && !block.done) this.counts.residual++;
    }
  }

  // flush forgets all blocks, so that what is missing of them is counted.
  flush() {
    for (const sbn of [...this.blocks.keys()]) this.forget(sbn);
  }

  rebuild(block) {
    if (block.done || block.have < block.k) return true;
    block.done = true;
    const { k, symbols, length } = block;
    block.symbols = [];
    const lost = [];
    for (let i = 0; i < k; i++) if (!block.seen[i]) lost.push(i);
    if (lost.length === 0) return true;
    for (let i = 0; i < k; i++) if (symbols[i] && symbols[i].length > length) return this.refuse();
    const rows = [];
    for (let i = 0; i < block.repair && rows.length < lost.length; i++) if (symbols[k + i]) rows.push(i);
    const all = coefficients(k, rows);
    const right = rows.map((row, n) => {
      const sum = symbols[k + row];
      for (let i = 0; i < k; i++) if (symbols[i]) addScaled(sum, symbols[i], all[n][i]);
      return sum;
    });
    if (!solve(all.map((c) => Uint8Array.from(lost, (i) => c[i])), right)) return this.refuse();
    for (const symbol of right) {
      const n = (symbol[1] << 8) | symbol[2];
      if (headLength + n > symbol.length) return this.refuse();
      if (n > 0) this.hand(symbol.subarray(headLength, headLength + n), true);
    }
    return true;
  }

  hand(adu, repaired) {
    this.counts.delivered++;
    if (repaired) this.counts.repaired++;
    this.deliver(adu, repaired);
  }

  // nack asks the edge for more parity of the blocks that are short now, of each once; null if there are none.
  nack() {
    const lacks = [];
    for (const [sbn, block] of this.blocks) {
      if (block.done || block.asked || block.later < reordered) continue;
      block.asked = true;
      lacks.push([sbn, block.k - block.have]);
    }
    if (lacks.length === 0) return null;
    const view = new DataView(new ArrayBuffer(4 + 4 * lacks.length));
    view.setUint32(0, 0x42666e31); // "Bfn1"
    lacks.forEach(([sbn, symbols], i) => view.setUint32(4 + 4 * i, sbn * 256 + symbols));
    return new Uint8Array(view.buffer);
  }

  // report is what the edge is told, so that it can choose how much parity to send.
  report() {
    const b = new Uint8Array(44);
    const view = new DataView(b.buffer);
    b.set([0x42, 0x66, 0x72, 0x31]); // "Bfr1"
    const c = this.counts;
    [c.expected, c.lost, c.bursts, c.delivered, c.residual].forEach((n, i) => view.setBigUint64(4 + 8 * i, BigInt(n)));
    return b;
  }
}

function readId(pkt, at) {
  const k = (pkt[at + 4] << 8) | pkt[at + 5];
  const esi = pkt[at + 3];
  if (k < 1 || k > maxSymbols || esi >= maxSymbols) return null;
  return { sbn: (pkt[at] << 16) | (pkt[at + 1] << 8) | pkt[at + 2], esi, k };
}

// Stream subscribes to a stream. on.packet gets each packet, on.state what becomes of the session. options go to
// WebTransport. Without parity (?fec=off) it asks for none. After a break it subscribes anew, each time waiting a little longer, until close.
export class Stream {
  constructor(url, on, options = {}) {
    this.url = url;
    this.on = on;
    this.options = options;
    this.nacks = new URL(url, globalThis.location?.href).searchParams.get('fec') !== 'off';
    this.decoder = new Decoder((adu, repaired) => on.packet(adu, repaired));
    this.ended = false;
    this.closed = this.run();
  }

  get counts() {
    return this.decoder.counts;
  }

  close() {
    this.ended = true;
    this.session?.close();
  }

  async run() {
    for (let wait = 250; !this.ended; wait = Math.min(2 * wait, 8000)) {
      try {
        const began = performance.now();
        await this.once();
        if (performance.now() - began > 10000) wait = 250;
      } catch (err) {
        this.on.state?.(`lost: ${err.message ?? err}`);
      }
      if (!this.ended) await new Promise((done) => setTimeout(done, wait));
    }
  }

  async once() {
    const session = (this.session = new WebTransport(this.url, this.options));
    let timer;
    try {
      await session.ready;
      this.on.state?.('playing');
      const way = session.datagrams;
      const writer = (way.writable ?? way.createWritable()).getWriter();
      timer = setInterval(() => writer.write(this.decoder.report()).catch(() => {}), 200);
      const reader = way.readable.getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        if (value[0] === 1) this.decoder.repair(value.subarray(1));
        else this.decoder.source(value.subarray(1));
        const nack = this.nacks && this.decoder.nack();
        if (nack) writer.write(nack).catch(() => {});
      }
    } finally {
      clearInterval(timer);
      session.closed.catch(() => {});
      session.close();
    }
  }
}
