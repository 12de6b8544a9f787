package dictionary

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/bits"
	"net/http"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/bermedge/berm/userspace/pipeline"
)

// coding is the content coding "dictionary-compressed Zstandard" (RFC 9842, 5). Its brother dcb needs an encoder of
// Brotli with dictionaries, of which there is none in Go.
const coding = "dcz"

// magic begins every answer of that coding, before the dictionary's hash: a frame that decoders skip.
var magic = [8]byte{0x5e, 0x2a, 0x4d, 0x18, 0x20, 0, 0, 0}

// encode replaces the answer's body by one encoded with d, where that is smaller. It returns the body as it was, when it
// had to be read. Whatever hinders it, the client gets what it would have got anyway.
func (s *Stage) encode(x *pipeline.Exchange, d *dict, head head) []byte {
	switch {
	case head.coded || !head.text || !head.modified:
		s.stats.count(resultUnsuitable)
		return nil
	case head.length < minSize || head.length > int64(s.cfg.MaxSize):
		s.stats.count(resultSize)
		return nil
	case !s.store.reserve(head.length):
		s.stats.count(resultBusy)
		return nil
	}
	whole := s.collect(x, head.length)
	if whole.err != nil || int64(len(whole.data)) != head.length {
		return nil // it goes out as far as it came, and the client is told that it is not whole
	}
	sum := sha256.Sum256(whole.data)
	data, known := s.store.variant(d, sum)
	if !known {
		var ok bool
		if data, ok = s.compress(x, d, whole.data); !ok {
			s.stats.count(resultBusy)
			return whole.data
		}
		s.store.keep(d, sum, data)
		s.stats.encoded.Add(1)
	}
	if data == nil {
		s.stats.count(resultNotSmaller)
		return whole.data
	}
	s.stats.count(resultSent)
	s.stats.bytesIn.Add(uint64(len(whole.data)))
	s.stats.bytesOut.Add(uint64(len(data)))
	content := whole.data
	whole.data = data
	describe(x, head, len(data))
	return content
}

// describe makes the head that of the encoded body.
func describe(x *pipeline.Exchange, head head, length int) {
	x.SetExtra("Content-Encoding", coding)
	x.SetExtra("Content-Length", strconv.Itoa(length))
	if head.etag != "" { // another representation of the same content: conditions hold, ranges do not
		x.SetExtra("Etag", weak(head.etag))
	}
	for _, f := range x.Head {
		switch f.Name {
		case "Content-Digest", "Repr-Digest", "Digest", "Content-Md5": // of the body as it was
			x.SetExtra(f.Name)
		}
	}
}

// weak returns the weak form of an entity tag.
func weak(etag string) string {
	if strings.HasPrefix(etag, "W/") {
		return etag
	}
	return "W/" + etag
}

// compress encodes content with d. It returns nil where that makes it no smaller, and false where it could not try.
func (s *Stage) compress(x *pipeline.Exchange, d *dict, content []byte) ([]byte, bool) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-x.R.Context().Done():
		return nil, false
	}
	window := windowFor(len(d.content) + len(content))
	cost := encoderCost(window, len(content))
	if !s.store.reserve(cost) {
		return nil, false
	}
	defer s.store.release(cost)
	data, err := frame(d, content, window)
	if err != nil || len(data) >= len(content) {
		return nil, err == nil
	}
	return bytes.Clone(data), true // of the exact size: it may be kept
}

// frame returns magic, hash and compressed content.
func frame(d *dict, content []byte, window int) ([]byte, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderDictRaw(0, d.content), zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true), zstd.WithSingleSegment(false))
	if err != nil {
		return nil, fmt.Errorf("encoder: %w", err)
	}
	out := make([]byte, 0, len(magic)+len(d.sum)+len(content)/2)
	out = append(append(out, magic[:]...), d.sum[:]...)
	return enc.EncodeAll(content, out), enc.Close()
}

// windowFor returns the window that reaches from the end of a body to the beginning of its dictionary.
func windowFor(n int) int { return max(1<<bits.Len(uint(n-1)), 64<<10) }

// encoderCost is what an encoder takes while it is at work: its history, its tables, and what it writes.
// TestEncoderCost holds it.
func encoderCost(window, content int) int64 { return int64(2*window + content + 4<<20) }

// learn makes a dictionary of an answer: of content where that is at hand, else of what the client gets.
func (s *Stage) learn(x *pipeline.Exchange, origin string, u use, head head, content []byte) {
	switch {
	case head.coded:
		s.stats.count(resultCoded)
		return
	case head.length > int64(s.cfg.MaxSize):
		s.stats.count(resultTooLarge)
		return
	case head.source != "" && s.store.knows(head.source, u):
		return
	}
	d := &dict{use: u, origin: origin, source: head.source}
	if content != nil {
		d.content = content
		s.add(d)
		return
	}
	// Of unknown length, it is as large as may be until it is whole.
	charged := head.length
	if charged < 0 {
		charged = int64(s.cfg.MaxSize)
	}
	if !s.store.reserve(charged) {
		s.stats.count(resultBusy)
		return
	}
	x.Body = &lesson{Body: x.Body, stage: s, dict: d, charged: charged, length: head.length}
}

func (s *Stage) add(d *dict) {
	d.sum = sha256.Sum256(d.content)
	if s.store.learn(d) {
		s.stats.learnt.Add(1)
	} else {
		s.stats.count(resultBusy)
	}
}

// collect reads the answer's body and puts a whole one in its place, for which n bytes are reserved.
func (s *Stage) collect(x *pipeline.Exchange, n int64) *whole {
	to := x.W
	sink := &sink{header: http.Header{}, buf: make([]byte, 0, n)}
	x.W = sink
	_, err := x.Body.Send(x)
	x.W = to
	x.Body.Close()
	w := &whole{stage: s, data: sink.buf, trailer: sink.header, err: err, charged: n}
	x.Body = w
	return w
}

// sink takes a body that is not sent yet.
type sink struct {
	header http.Header
	buf    []byte
}

// Header returns where trailers go.
func (s *sink) Header() http.Header { return s.header }

// WriteHeader has nothing to do.
func (*sink) WriteHeader(int) {}

// Flush has nothing to do.
func (*sink) Flush() {}

// Write keeps p, up to the length that was announced.
func (s *sink) Write(p []byte) (int, error) {
	if len(p) > cap(s.buf)-len(s.buf) {
		return 0, io.ErrShortBuffer
	}
	s.buf = append(s.buf, p...)
	return len(p), nil
}

// whole is a body in memory.
type whole struct {
	stage   *Stage
	data    []byte
	trailer http.Header
	err     error // why it ends early
	charged int64
}

// Send sends it.
func (w *whole) Send(x *pipeline.Exchange) (int64, error) {
	n, err := x.W.Write(w.data)
	if err != nil {
		return int64(n), fmt.Errorf("send to the client: %w", err)
	}
	for name, values := range w.trailer {
		x.W.Header()[name] = values
	}
	return int64(n), w.err
}

// Close gives its memory back.
func (w *whole) Close() { w.stage.store.release(w.charged) }

// lesson is a body that becomes a dictionary once it has been sent whole.
type lesson struct {
	pipeline.Body
	stage   *Stage
	dict    *dict
	charged int64
	length  int64 // -1: unknown
	buf     []byte
	over    bool // larger than a dictionary may be
}

// Send sends it and keeps a copy.
func (l *lesson) Send(x *pipeline.Exchange) (int64, error) {
	to := x.W
	x.W = &tee{to, l}
	n, err := l.Body.Send(x)
	x.W = to
	switch {
	case err != nil || l.length >= 0 && int64(len(l.buf)) != l.length:
	case l.over:
		l.stage.stats.count(resultTooLarge)
	case len(l.buf) > 0:
		l.stage.store.release(l.charged)
		l.charged = 0
		l.dict.content = bytes.Clone(l.buf)
		l.buf = nil
		l.stage.add(l.dict)
	}
	return n, err
}

// Close closes the body.
func (l *lesson) Close() {
	l.stage.store.release(l.charged)
	l.Body.Close()
}

// tee writes to the client and remembers what.
type tee struct {
	http.ResponseWriter
	lesson *lesson
}

// Write sends p.
func (t *tee) Write(p []byte) (int, error) {
	l := t.lesson
	switch {
	case l.over:
	case len(l.buf)+len(p) > int(l.stage.cfg.MaxSize):
		l.over, l.buf = true, nil
	default:
		l.buf = append(l.buf, p...)
	}
	return t.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the stream.
func (t *tee) Unwrap() http.ResponseWriter { return t.ResponseWriter }
