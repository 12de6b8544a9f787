package flow

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	const v4 = "tcp 198.51.100.7:5000 192.0.2.10:443"
	const v6 = "udp [2001:db8::7]:5000 [2001:db8::10]:443"
	for _, c := range []struct{ in, want string }{
		{"198.51.100.7:5000 192.0.2.10:443", v4},
		{"198.51.100.7:5000 192.0.2.10:443 tcp", v4},
		{"TCP 198.51.100.7:5000 192.0.2.10:443", v4},
		{"198.51.100.7:5000 -> 192.0.2.10:443/tcp", v4},
		{"198.51.100.7:5000->192.0.2.10:443", v4},
		{"198.51.100.7,5000,192.0.2.10,443,tcp", v4},
		{"198.51.100.7 5000 192.0.2.10 443 tcp", v4},
		{"198.51.100.7 192.0.2.10 5000 443 tcp", v4},
		{"tcp/198.51.100.7:5000 192.0.2.10:443", ""},
		{"::ffff:198.51.100.7 5000 192.0.2.10 443", v4},
		{"12:00:01.5 IP 198.51.100.7.5000 > 192.0.2.10.443: Flags [S], seq 1, win 64240, length 0", v4},
		{"IP6 2001:db8::7.5000 > 2001:db8::10.443: UDP, length 1200", v6},
		{"[2001:db8::7]:5000 [2001:db8::10]:443 udp", v6},
		{"2001:db8::7 5000 2001:db8::10 443 quic", v6},
		{"ESTAB 0 0 198.51.100.7:5000 192.0.2.10:443", v4},
		{"tcp 6 431999 ESTABLISHED src=198.51.100.7 dst=192.0.2.10 sport=5000 dport=443 src=192.0.2.10 dst=198.51.100.7 sport=443 dport=5000 [ASSURED] mark=0 use=1", v4},
		{"", ""},
		{"198.51.100.7:5000", ""},
		{"198.51.100.7 192.0.2.10", ""},
		{"198.51.100.7:5000 192.0.2.10", ""},
		{"198.51.100.7 192.0.2.10:443", ""},
		{"198.51.100.7:5000 [2001:db8::10]:443", ""},
		{"198.51.100.7:70000 192.0.2.10:443", ""},
		{"198.51.100.7:5000 192.0.2.10:443 sctp", ""},
		{"198.51.100.7:5000 192.0.2.10:443/sctp", ""},
		{"198.51.100.7:5000 192.0.2.10:443 192.0.2.11:443", ""},
		{"src=nonsense dst=192.0.2.10 sport=1 dport=2", ""},
	} {
		for _, words := range [][]string{{c.in}, strings.Fields(c.in)} {
			f, err := Parse(words)
			got := ""
			if err == nil {
				got = f.Protocol + " " + f.Source.String() + " " + f.Destination.String()
			}
			if got != c.want {
				t.Errorf("%q: %q (%v), want %q", c.in, got, err, c.want)
			}
		}
	}
}

func TestTCPFlags(t *testing.T) {
	for in, want := range map[string]int{
		"IP 198.51.100.7.5000 > 192.0.2.10.443: Flags [S], seq 1, win 64240, length 0": 0x02,
		"IP 198.51.100.7.5000 > 192.0.2.10.443: Flags [SF], seq 1":                     0x03,
		"Flags [P.], seq 1:2": 0x18, "Flags [R]": 0x04, "Flags [SEW]": 0xc2, "Flags [U]": 0x20, "Flags [none]": 0,
		"198.51.100.7:5000 192.0.2.10:443": -1, "Flags [S": -1, "Flags [x]": -1, "UDP, length 12": -1,
	} {
		for _, words := range [][]string{{in}, strings.Fields(in)} {
			if got, ok := TCPFlags(words); ok != (want >= 0) || ok && int(got) != want {
				t.Errorf("%q: %#x, %v; want %#x", in, got, ok, want)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("198.51.100.7:5000 -> 192.0.2.10:443/tcp")
	f.Add("IP6 2001:db8::7.5000 > 2001:db8::10.443: UDP, length 1200")
	f.Add("src=1.2.3.4 dst=1.2.3.5 sport=1 dport=2")
	f.Fuzz(func(t *testing.T, s string) {
		flow, err := Parse([]string{s})
		if err == nil && (!flow.Source.IsValid() || !flow.Destination.IsValid()) {
			t.Errorf("%q: accepted without both ends: %+v", s, flow)
		}
	})
}
