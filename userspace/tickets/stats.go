package tickets

import (
	"crypto/tls"
	"sync/atomic"
)

// groups are those of key exchanges that are told apart; the last stands for all others and for none (TLS 1.2 resumed).
var groups = [...]tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521, tls.SecP256r1MLKEM768, tls.SecP384r1MLKEM1024, 0}

// Stats count completed handshakes.
type Stats struct {
	handshakes [2][2][len(groups)]atomic.Uint64 // by transport, resumption and group
}

// Handshakes is one counter of Stats.
type Handshakes struct {
	Transport string // tcp or quic
	Session   string // full or resumed
	Group     string // of the key exchange
	N         uint64
}

var (
	transports = [...]string{"tcp", "quic"}
	sessions   = [...]string{"full", "resumed"}
)

// count is called at the end of each handshake.
func (s *Stats) count(cs tls.ConnectionState) error {
	var transport, session int
	if cs.NegotiatedProtocol == "h3" {
		transport = 1
	}
	if cs.DidResume {
		session = 1
	}
	group := len(groups) - 1
	for i, g := range groups {
		if g == cs.CurveID {
			group = i
		}
	}
	s.handshakes[transport][session][group].Add(1)
	return nil
}

// Handshakes lists the counters that are not zero.
func (s *Stats) Handshakes() (out []Handshakes) {
	for t := range s.handshakes {
		for r := range s.handshakes[t] {
			for g := range s.handshakes[t][r] {
				n := s.handshakes[t][r][g].Load()
				if n == 0 {
					continue
				}
				name := "other"
				if groups[g] != 0 {
					name = groups[g].String()
				}
				out = append(out, Handshakes{transports[t], sessions[r], name, n})
			}
		}
	}
	return out
}
