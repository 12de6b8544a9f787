package transport

import (
	"context"
	"encoding/binary"
	"net/http"
	"strconv"
	"sync/atomic"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3/qlog"
	"github.com/quic-go/quic-go/qlogwriter"
)

// rawHead is how many bytes a response's head would take in HTTP/1.1's lines: name, ": ", value, CRLF. What servers add
// themselves counts where its length is known before.
func rawHead(status int, h http.Header) (n int) {
	const line = 4
	n = len(":status") + len(strconv.Itoa(status)) + line
	for name, values := range h {
		for _, v := range values {
			n += len(name) + len(v) + line
		}
	}
	if _, ok := h["Date"]; !ok {
		n += len("Date") + len(http.TimeFormat) + line
	}
	return n
}

// The types of h2 frames that carry heads (RFC 9113, 6.2 and 6.10), and the length of a frame's own head.
const (
	frameHeaders      = 1
	frameContinuation = 9
	frameHead         = 9
)

// frameMeter adds up the frames of heads in what an h2 server writes, however it is cut into writes.
type frameMeter struct {
	wire *atomic.Uint64
	head [frameHead]byte
	have int    // bytes of head
	left uint32 // bytes of the frame that are still to come
}

// note looks at what is written next.
func (m *frameMeter) note(p []byte) {
	for len(p) > 0 {
		if m.left > 0 {
			n := min(m.left, uint32(len(p)))
			m.left -= n
			p = p[n:]
			continue
		}
		n := copy(m.head[m.have:], p)
		m.have += n
		p = p[n:]
		if m.have < frameHead {
			return
		}
		m.have = 0
		m.left = binary.BigEndian.Uint32(m.head[:4]) >> 8
		if kind := m.head[3]; kind == frameHeaders || kind == frameContinuation {
			m.wire.Add(frameHead + uint64(m.left))
		}
	}
}

// headTracer has quic-go tell of the HTTP/3 frames that it makes. A connection asks its trace for two recorders, QUIC's
// first: that one gets none, since it would be told of every packet.
func headTracer(wire *atomic.Uint64) func(context.Context, bool, quic.ConnectionID) qlogwriter.Trace {
	return func(context.Context, bool, quic.ConnectionID) qlogwriter.Trace { return &headTrace{wire: wire} }
}

type headTrace struct {
	wire  *atomic.Uint64
	asked atomic.Bool
}

// SupportsSchemas says that only HTTP/3's events are wanted.
func (*headTrace) SupportsSchemas(schema string) bool { return schema == qlog.EventSchema }

// AddProducer returns nothing for QUIC itself, and then what counts.
func (t *headTrace) AddProducer() qlogwriter.Recorder {
	if !t.asked.Swap(true) {
		return nil
	}
	return headRecorder{t.wire}
}

type headRecorder struct{ wire *atomic.Uint64 }

// RecordEvent counts heads: theirs are the only HEADERS frames that a server makes, trailers apart.
func (r headRecorder) RecordEvent(e qlogwriter.Event) {
	if made, ok := e.(qlog.FrameCreated); ok {
		if _, ok := made.Frame.Frame.(qlog.HeadersFrame); ok {
			r.wire.Add(uint64(made.Raw.Length))
		}
	}
}

// Close has nothing to close.
func (headRecorder) Close() error { return nil }
