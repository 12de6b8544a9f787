package main_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/test/browser"
	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/test/rig/rigtest"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/fec"
)

// lossyPath is a UDP relay on loopback that loses a share of what it carries back to each client: the same datagrams
// of a flow in each run, but none of its first, which make the handshake.
func lossyPath(t *testing.T, to string, loss float64) (at string) {
	t.Helper()
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = front.Close() })
	go func() {
		flows, buf := map[netip.AddrPort]net.Conn{}, make([]byte, 2048)
		defer func() {
			for _, back := range flows {
				_ = back.Close()
			}
		}()
		for {
			n, from, err := front.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			} else if err != nil {
				continue // an ICMP error about an earlier packet
			}
			back := flows[from]
			if back == nil {
				if back, err = net.Dial("udp4", to); err != nil {
					return // the test finds nothing at the other end
				}
				flows[from] = back
				go carryBack(front, back, from, loss)
			}
			_, _ = back.Write(buf[:n])
		}
	}()
	return front.LocalAddr().String()
}

func carryBack(front *net.UDPConn, back net.Conn, to netip.AddrPort, loss float64) {
	r, buf := rand.New(rand.NewPCG(1, 2)), make([]byte, 2048)
	for seen := 0; ; {
		n, err := back.Read(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			continue
		}
		if seen++; seen < 30 || r.Float64() >= loss {
			_, _ = front.WriteToUDPAddrPort(buf[:n], to)
		}
	}
}

// trusts returns the flag by which Chromium takes the certificate that is served at an address.
func trusts(t *testing.T, addr string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // it is to be looked at
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	spki := sha256.Sum256(conn.ConnectionState().PeerCertificates[0].RawSubjectPublicKeyInfo)
	return "--ignore-certificate-errors-spki-list=" + base64.StdEncoding.EncodeToString(spki[:])
}

// showPictures sends what the player shows: eight times six tiles of moving colours, ten pictures a second.
func showPictures(t *testing.T, to string) {
	t.Helper()
	const columns, rows = 8, 6
	conn, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	ctx, done := t.Context(), make(chan struct{})
	t.Cleanup(func() { <-done; _ = conn.Close() })
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Second / (10 * columns * rows))
		defer tick.Stop()
		pkt := make([]byte, 12+768)
		copy(pkt, "BTV1")
		for n := range 1 << 30 {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			picture, tile := n/(columns*rows), n%(columns*rows)
			binary.BigEndian.PutUint32(pkt[4:], uint32(picture))
			copy(pkt[8:], []byte{byte(tile % columns), byte(tile / columns), columns, rows})
			for p := range 256 {
				x, y := tile%columns*16+p%16, tile/columns*16+p/16
				copy(pkt[12+3*p:], []byte{byte(2*x + 3*picture), byte(2*y + 2*picture), byte(x + y + picture)})
			}
			_, _ = conn.Write(pkt)
		}
	}()
}

// watched is what the page counts of one of its two streams.
type watched struct {
	Received, Delivered, Repaired, Residual, Lost, Expected, Refused uint64
}

func (w watched) since(o watched) watched {
	return watched{w.Received - o.Received, w.Delivered - o.Delivered, w.Repaired - o.Repaired, w.Residual - o.Residual, w.Lost - o.Lost, w.Expected - o.Expected, w.Refused - o.Refused}
}

func (w watched) missing() float64 {
	return float64(w.Residual) / float64(max(w.Residual+w.Delivered, 1))
}

// Chromium plays a stream twice over a path that loses 5 %: with repair all but everything arrives.
func TestBrowser(t *testing.T) {
	rigtest.Require(t, need("chromium"))
	in := freeUDP(t)
	p := mustStart(t, onLoopback, "fec:", "  streams:",
		fmt.Sprintf("    - {name: stage, listen: %q, path: /live/stage, page: true, delay: 60ms}", in))
	edge := strings.TrimPrefix(p.url(t, "h3"), "https://")
	_, port, _ := net.SplitHostPort(lossyPath(t, edge, 0.05))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b, err := browser.Start(ctx, trusts(t, edge), "--origin-to-force-quic-on=edge.test:"+port, "--host-resolver-rules=MAP edge.test 127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(b.Printed())
		}
	})
	showPictures(t, in)
	page, err := b.Open(ctx, "https://edge.test:"+port+"/live/stage")
	if err != nil {
		t.Fatal(err)
	}
	var now struct{ Plain, Repaired watched }
	const look = `globalThis.berm ? {plain: berm.plain.stream.counts, repaired: berm.repaired.stream.counts} : {plain: {}, repaired: {}}`
	until := func(what string, done func() bool) {
		t.Helper()
		err := rig.Until(ctx, 40*time.Second, what, func() (bool, error) {
			return done(), page.Eval(ctx, look, &now)
		})
		if err != nil {
			t.Fatalf("%v: %+v", err, now)
		}
	}
	until("parity repairs in the page", func() bool { return now.Repaired.Repaired > 10 && now.Plain.Residual > 10 })
	began := now
	until("1200 packets more", func() bool { return now.Repaired.since(began.Repaired).Delivered > 1200 })
	plain, repaired := now.Plain.since(began.Plain), now.Repaired.since(began.Repaired)
	t.Logf("without repair %.2g of packets are missing (%+v), with it %.2g (%+v)", plain.missing(), plain, repaired.missing(), repaired)
	if plain.missing() < 0.02 || repaired.missing() > plain.missing()/10 || repaired.Repaired < 25 {
		t.Error("repair makes no great difference")
	}
	if plain.Repaired > 0 || repaired.Refused+plain.Refused > 0 {
		t.Error("parity for who wants none, or packets that are refused")
	}
	streams, err := p.client.LiveStreams(ctx)
	if err != nil || len(streams) != 1 || !slices.ContainsFunc(streams[0].Subscribers, func(s control.Subscriber) bool { return s.Nacks > 0 }) {
		t.Errorf("the page asked for no more parity: %+v, %v", streams, err)
	}
	var views struct{ Whole, PlainWhole, Samples int }
	if err := page.Eval(ctx, `({whole: berm.repaired.view.whole, plainWhole: berm.plain.view.whole, samples: berm.samples.length})`, &views); err != nil {
		t.Fatal(err)
	}
	if views.Whole <= 2*views.PlainWhole || views.Samples < 5 {
		t.Errorf("%+v: pictures without a hole, with and without repair, and points of the chart", views)
	}
	checkDecoder(t, ctx, page)
	if file := os.Getenv("BERM_SCREENSHOT"); file != "" { // for people
		png, err := page.Screenshot(ctx, 1000, 860)
		if err == nil {
			err = os.WriteFile(file, png, 0o644)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

// given is a packet for a decoder.
type given struct {
	Repair bool   `json:"repair"`
	Packet []byte `json:"packet"` // base64
}

// decoderCases are sequences of packets: blocks of many shapes with as many losses as they bear, or some more, in any
// order, some twice, some forged.
func decoderCases(t *testing.T) (cases [][]given) {
	t.Helper()
	r := rand.New(rand.NewPCG(3, 4))
	for n := range 60 {
		shape := []fec.Params{{K: 1, M: 1}, {K: 3, M: 2}, {K: 10, M: 2}, {K: 20, M: 6}, {K: 50, M: 10}, {K: 150, M: 30}}[n%6]
		enc, err := fec.NewEncoder(shape, 60, uint32(n))
		if err != nil {
			t.Fatal(err)
		}
		var block []given
		for range shape.K {
			adu := make([]byte, 1+r.IntN(60))
			for i := range adu {
				adu[i] = byte(r.Uint32())
			}
			err := enc.Add(adu, func(pkt []byte, repair bool) error {
				block = append(block, given{repair, slices.Clone(pkt)})
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		r.Shuffle(len(block), func(i, j int) { block[i], block[j] = block[j], block[i] })
		block = append(block[min(shape.M+n/6%3-1, len(block)-1):], block[len(block)-1])
		for range 3 { // of the next block: what this one lacks is asked for
			err := enc.Add([]byte{byte(n)}, func(pkt []byte, repair bool) error {
				block = append(block, given{repair, slices.Clone(pkt)})
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if n >= 30 { // forged: a bit, a length, the kind
			for range 1 + n%4 {
				bad := block[r.IntN(len(block))]
				bad.Packet = slices.Clone(bad.Packet)
				switch r.IntN(4) {
				case 0:
					bad.Packet = bad.Packet[:r.IntN(len(bad.Packet))]
				case 1:
					bad.Repair = !bad.Repair
				default:
					bad.Packet[r.IntN(len(bad.Packet))] ^= 1 << r.IntN(8)
				}
				block = slices.Insert(block, r.IntN(len(block)), bad)
			}
		}
		cases = append(cases, block)
	}
	return cases
}

// outcome is what a decoder makes of a sequence.
type outcome struct {
	Packets [][]byte `json:"packets"`
	Nacks   [][]byte `json:"nacks"`
	Counts  watched  `json:"counts"`
}

// checkDecoder gives the page's decoder and ours the same packets: both make the same of them.
func checkDecoder(t *testing.T, ctx context.Context, page *browser.Page) { //nolint:revive // t comes first
	t.Helper()
	cases := decoderCases(t)
	in, err := json.Marshal(cases)
	if err != nil {
		t.Fatal(err)
	}
	var got []outcome
	err = page.Eval(ctx, `(async () => {
		const { Decoder } = await import(location.href + '/fec.js');
		const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
		return `+string(in)+`.map((packets) => {
			const out = [], nacks = [];
			const text = (bytes) => btoa(String.fromCharCode(...bytes));
			const decoder = new Decoder((adu) => out.push(text(adu)), { window: 2, longest: 60 });
			for (const { repair, packet } of packets) {
				repair ? decoder.repair(bytes(packet)) : decoder.source(bytes(packet));
				const nack = decoder.nack();
				if (nack) nacks.push(text(nack));
			}
			decoder.flush();
			return { packets: out, nacks, counts: decoder.counts };
		});
	})()`, &got)
	if err != nil {
		t.Fatal(err)
	}
	repaired, refused, nacks := uint64(0), uint64(0), 0
	for i, packets := range cases {
		var want outcome
		dec, err := fec.NewDecoder(2, 60, func(adu []byte, _ bool) { want.Packets = append(want.Packets, slices.Clone(adu)) })
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range packets {
			if g.Repair {
				_ = dec.Repair(g.Packet)
			} else {
				_ = dec.Source(g.Packet)
			}
			if b := dec.AppendNack(nil); len(b) > 0 {
				want.Nacks = append(want.Nacks, b)
			}
		}
		dec.Flush()
		c := dec.Counts()
		want.Counts = watched{c.Received, c.Delivered, c.Repaired, c.Residual, c.Lost, c.Expected, c.Refused}
		if got[i].Counts != want.Counts || !slices.EqualFunc(got[i].Packets, want.Packets, slices.Equal) || !slices.EqualFunc(got[i].Nacks, want.Nacks, slices.Equal) {
			t.Errorf("case %d: the page's decoder %+v with %d packets and NACKs %x, ours %+v with %d and %x", i, got[i].Counts, len(got[i].Packets), got[i].Nacks, want.Counts, len(want.Packets), want.Nacks)
		}
		repaired, refused, nacks = repaired+c.Repaired, refused+c.Refused, nacks+len(want.Nacks)
	}
	if repaired < 100 || refused < 10 || nacks < 10 {
		t.Errorf("the cases repair %d packets, refuse %d, and NACK %d times", repaired, refused, nacks)
	}
}
