package main_test

import (
	"context"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
	"github.com/bermedge/berm/userspace/congestion/quiccc"
	"github.com/bermedge/berm/userspace/control"
)

// fetchBig fetches over new connections of each transport, n times, and closes them.
func (s *served) fetchBig(n int) {
	s.t.Helper()
	for range n {
		for name, c := range s.clients() {
			if got, err := ask(c, "https://"+s.address+"/big"); err != nil || len(got) != bigAnswer {
				s.t.Fatalf("%s: %d of %d bytes: %v", name, len(got), bigAnswer, err)
			}
			end(s.t, c)
		}
	}
}

// end closes a client's connections.
func end(t *testing.T, c *http.Client) {
	t.Helper()
	c.CloseIdleConnections()
	if h3, ok := c.Transport.(io.Closer); ok {
		if err := h3.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What connections reach, of TCP as of QUIC, is counted in the kernel half and learned by the daemon; what it chose is what
// connections of both begin with; and all of that outlives a process, whether it is replaced or ends.
func TestLearnedOutlives(t *testing.T) {
	s := newServedIn(t, mapstest.InCgroup(t), "cc: {learn: {mode: on, hold_out: 0.25}}")
	client := netip.MustParseAddr("127.0.0.1")
	learned := func(what string, enough func(tcp, quic float64) bool) (l *control.Learned) {
		t.Helper()
		within(t, 20*time.Second, what, func() (bool, error) {
			var err error
			if l, err = s.client.Learned(t.Context(), client); err != nil || l == nil {
				return false, err
			}
			all, quic := 0.0, 0.0
			for _, score := range l.Scores {
				all, quic = all+score.Connections, quic+score.QUIC
			}
			return l.Profile != "" && enough(all-quic, quic), nil
		})
		return l
	}
	const n = 2 // twice of each: fewer than a choice stays for, whatever comes
	over := func(at float64) func(tcp, quic float64) bool {
		return func(tcp, quic float64) bool { // nearly: what is older counts a little less
			return tcp > at-0.5 && (quic > at-0.5 || !quiccc.Selectable)
		}
	}
	s.fetchBig(n)
	learned("results of TCP and of QUIC, and a choice", over(n))
	choice, err := s.client.ExplainCC(t.Context(), client)
	if err != nil || !strings.HasPrefix(choice.Profile.Name, "learn-") || choice.Owner != "learner" {
		t.Fatalf("%+v, %v", choice, err)
	}
	before := s.chosen()
	s.fetchBig(n)
	was := learned("results of the choice", over(2*n))
	for protocol, after := range s.chosen() {
		if more := after - before[protocol]; more != n {
			t.Errorf("%s: %d of %d connections began with what was chosen", protocol, more, n)
		}
	}

	same := func(what string) {
		t.Helper()
		l := learned("what was learned, "+what, func(float64, float64) bool { return true })
		if !l.Since.Equal(was.Since) || l.Profile != was.Profile || l.Why != was.Why {
			t.Errorf("%s: %+v, was %+v", what, l, was)
		}
		for i, score := range l.Scores { // and nothing is counted twice
			if before := was.Scores[i]; score.Connections > before.Connections || score.Connections < 0.9*before.Connections || score.QUIC > before.QUIC || score.QUIC < 0.9*before.QUIC {
				t.Errorf("%s: %+v, was %+v", what, score, before)
			}
		}
	}
	if _, err := s.client.Upgrade(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.settle()
	same("after a hand-over")
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	if err := s.unit.Stop(ctx, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := s.unit.Start(ctx); err != nil {
		t.Fatal(err)
	}
	same("after a restart")
	learned("results after it", func(tcp, quic float64) bool {
		s.fetchBig(1)
		return over(2*n+1)(tcp, quic)
	})
}

// chosen counts connections that began with a profile of the learner's, by protocol, as the kernel half has it.
func (s *served) chosen() map[maps.Protocol]uint32 {
	s.t.Helper()
	set, err := maps.Open(maps.PinDir(s.pins))
	if err != nil {
		s.t.Fatal(err)
	}
	defer set.Close() //nolint:errcheck // only read
	list, err := set.CC.Results()
	if err != nil {
		s.t.Fatal(err)
	}
	counts := map[maps.Protocol]uint32{maps.ProtocolTCP: 0}
	if quiccc.Selectable {
		counts[maps.ProtocolUDP] = 0
	}
	for _, r := range list {
		for _, p := range r.Parts {
			if r.Profile != "" {
				counts[r.Protocol] += p.Connections
			}
		}
	}
	return counts
}
