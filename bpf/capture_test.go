package bpf_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf/ringbuf"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/bpf/internal/packet"
)

// captured are the copies in the ring.
func (k *kernel) captured(t *testing.T) (heads []bpf.XDPBermCaptured, frames [][]byte) {
	t.Helper()
	r, err := ringbuf.NewReader(k.BermPackets)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.SetDeadline(time.Now()) // what there is, is there
	for {
		rec, err := r.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return heads, frames
		}
		if err != nil {
			t.Fatal(err)
		}
		var h bpf.XDPBermCaptured
		if err := binary.Read(bytes.NewReader(rec.RawSample), binary.LittleEndian, &h); err != nil {
			t.Fatal(err)
		}
		heads = append(heads, h)
		frames = append(frames, rec.RawSample[binary.Size(h):])
	}
}

func TestCapture(t *testing.T) {
	k := newKernel(t)
	blocked, good, foreign := tcpTo(bad4, web4, 443, packet.SYN), tcpTo(good4, web4, 443, packet.SYN), tcpTo(good4, other4, 443, packet.SYN)
	const all = ^uint64(0)
	geo := uint64(1) << bpf.XDPBermDropBERM_DROP_GEO
	for _, tc := range []struct {
		name   string
		want   bpf.XDPBermCapture
		off    bool
		frames [][]byte
		copies int
		seen   uint64
		left   int64
		first  []byte
		stage  bpf.XDPBermStage
		exit   bpf.XDPBermExit
		reason bpf.XDPBermDrop
	}{
		{name: "nobody asks", off: true, want: bpf.XDPBermCapture{Left: 9, Reasons: all, Stages: 0xffff, Snap: 2047}, frames: [][]byte{blocked, good}, left: 9},
		{name: "all that is ours", want: bpf.XDPBermCapture{Left: 9, Reasons: all, Stages: 0xffff, Snap: 2047}, frames: [][]byte{foreign, blocked, good}, copies: 2, seen: 2, left: 7, first: blocked, stage: bpf.XDPBermStageBERM_STAGE_GEO, exit: bpf.XDPBermExitBERM_EXIT_DROP, reason: bpf.XDPBermDropBERM_DROP_GEO},
		{name: "a reason", want: bpf.XDPBermCapture{Left: 9, Reasons: geo, Stages: 0xffff, Snap: 60}, frames: [][]byte{good, blocked}, copies: 1, seen: 1, left: 8, first: blocked[:min(60, len(blocked))], stage: bpf.XDPBermStageBERM_STAGE_GEO, exit: bpf.XDPBermExitBERM_EXIT_DROP, reason: bpf.XDPBermDropBERM_DROP_GEO},
		{name: "not dropped", want: bpf.XDPBermCapture{Left: 9, Reasons: 1, Stages: 0xffff, Snap: 2047}, frames: [][]byte{blocked, good}, copies: 1, seen: 1, left: 8, stage: bpf.XDPBermStageBERM_STAGE_DELIVER, exit: bpf.XDPBermExitBERM_EXIT_FORWARD, first: good},
		{name: "another stage", want: bpf.XDPBermCapture{Left: 9, Reasons: all, Stages: 1 << bpf.XDPBermStageBERM_STAGE_RATE, Snap: 2047}, frames: [][]byte{blocked, good}, left: 9},
		{name: "another VIP", want: bpf.XDPBermCapture{Left: 9, Reasons: all, Stages: 0xffff, Vip: 4000, Snap: 2047}, frames: [][]byte{blocked}, left: 9},
		{name: "every fourth", want: bpf.XDPBermCapture{Left: 9, Reasons: geo, Stages: 0xffff, Mask: 3, Snap: 2047}, frames: [][]byte{blocked, blocked, blocked, blocked, blocked}, copies: 2, seen: 5, left: 7, first: blocked, stage: bpf.XDPBermStageBERM_STAGE_GEO, exit: bpf.XDPBermExitBERM_EXIT_DROP, reason: bpf.XDPBermDropBERM_DROP_GEO},
		{name: "enough", want: bpf.XDPBermCapture{Left: 1, Reasons: geo, Stages: 0xffff, Snap: 2047}, frames: [][]byte{blocked, blocked, blocked}, copies: 1, seen: 3, first: blocked, stage: bpf.XDPBermStageBERM_STAGE_GEO, exit: bpf.XDPBermExitBERM_EXIT_DROP, reason: bpf.XDPBermDropBERM_DROP_GEO},
		{name: "no bytes", want: bpf.XDPBermCapture{Left: 9, Reasons: geo, Stages: 0xffff}, frames: [][]byte{blocked}, seen: 1, left: 8},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k.reset(t)
			put(t, k.BermCaptures, uint32(0), &tc.want)
			if !tc.off {
				k.configure(t, func(c *bpf.XDPBermConfig) { c.Flags |= uint32(bpf.XDPBermConfigFlagsBERM_CONFIG_CAPTURE) })
			}
			for _, f := range tc.frames {
				run(t, k.XdpBermAt, f)
			}
			heads, frames := k.captured(t)
			var now bpf.XDPBermCapture
			if err := k.BermCaptures.Lookup(uint32(0), &now); err != nil {
				t.Fatal(err)
			}
			if len(frames) != tc.copies || now.Seen != tc.seen || int64(now.Left) != tc.left || now.Lost != 0 {
				t.Fatalf("%d copies, %+v; want %d copies, %d seen, %d left", len(frames), now, tc.copies, tc.seen, tc.left)
			}
			if tc.copies == 0 {
				return
			}
			h := heads[0]
			got, first := frames[0], tc.first
			if tc.exit == bpf.XDPBermExitBERM_EXIT_FORWARD { // as it leaves: in a tunnel
				got, first = got[len(got)-len(first)+14:], first[14:]
				h.Len -= 20
			}
			if !bytes.Equal(got, first) || h.Stage != uint8(tc.stage) || h.Exit != uint8(tc.exit) || h.Reason != uint8(tc.reason) ||
				h.Weight != tc.want.Mask+1 || h.TimeNs == 0 || h.Vip == 0 || h.Pad != 0 || (tc.want.Snap > 1000 && h.Len != uint32(len(tc.first))) {
				t.Errorf("%+v % x\nwant % x", h, frames[0], tc.first)
			}
		})
	}
}

// TestCaptureLosesCopiesOnly: a full ring loses copies, and says how many; packets fare as ever.
func TestCaptureLosesCopiesOnly(t *testing.T) {
	k := newKernel(t)
	put(t, k.BermCaptures, uint32(0), &bpf.XDPBermCapture{Left: 1 << 20, Reasons: ^uint64(0), Stages: 0xffff, Snap: 2047})
	k.configure(t, func(c *bpf.XDPBermConfig) { c.Flags |= uint32(bpf.XDPBermConfigFlagsBERM_CONFIG_CAPTURE) })
	frame := append(tcpTo(good4, web4, 443, packet.ACK), make([]byte, 1300)...)
	const packets = 1000
	for range packets {
		run(t, k.XdpBermAt, frame)
	}
	_, frames := k.captured(t)
	var now bpf.XDPBermCapture
	if err := k.BermCaptures.Lookup(uint32(0), &now); err != nil {
		t.Fatal(err)
	}
	if now.Lost == 0 || uint64(len(frames))+now.Lost != packets || now.Seen != packets {
		t.Errorf("%d copies, %+v of %d packets", len(frames), now, packets)
	}
}
