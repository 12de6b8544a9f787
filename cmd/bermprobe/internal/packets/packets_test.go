package packets

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// need skips a test that cannot run here; where BERM_NO_SKIP is set, that is a failure.
func need(t testing.TB, ok bool, why string) {
	t.Helper()
	switch {
	case ok:
	case os.Getenv("BERM_NO_SKIP") != "":
		t.Fatal("may not skip:", why)
	default:
		t.Skip(why)
	}
}

// The kernel is the judge: it delivers only packets whose every checksum is right.
func TestUDPArrives(t *testing.T) {
	need(t, os.Geteuid() == 0, "needs root for a raw socket")
	for _, c := range []struct{ listen, src string }{{"127.0.0.1:0", "127.8.0.0/16"}, {"[::1]:0", "::1"}} {
		t.Run(c.listen, func(t *testing.T) {
			pc, err := net.ListenPacket("udp", c.listen)
			if err != nil {
				t.Fatal(err)
			}
			defer pc.Close()
			var src Source
			if err := src.UnmarshalText([]byte(c.src)); err != nil {
				t.Fatal(err)
			}
			o := Options{Src: src, Dst: netip.MustParseAddrPort(pc.LocalAddr().String()), Kind: "udp", Size: 33, PPS: 5000, Count: 100}
			if err := o.Validate(); err != nil {
				t.Fatal(err)
			}
			r, err := Run(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if r.Sent != 100 || r.Lost != 0 || r.Device != "lo" {
				t.Errorf("%+v", r)
			}
			sources := map[string]bool{}
			buf := make([]byte, 100)
			_ = pc.SetReadDeadline(time.Now().Add(5 * time.Second))
			for i := range 100 {
				n, from, err := pc.ReadFrom(buf)
				if err != nil || n != 33 {
					t.Fatalf("packet %d: %d bytes, %v", i, n, err)
				}
				sources[from.String()] = true
			}
			if len(sources) != 100 {
				t.Errorf("100 packets came from %d sources and ports, want 100", len(sources))
			}
		})
	}
}

// A bare SYN to a listener is answered, so the kernel must have taken it for one.
func TestSYNReachesAListener(t *testing.T) {
	need(t, os.Geteuid() == 0, "needs root for a raw socket")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	before := attempts(t)
	o := Options{Src: Source{netip.MustParsePrefix("127.9.0.1/32")}, Dst: netip.MustParseAddrPort(l.Addr().String()), Kind: "syn", Count: 10}
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if r.Sent != 10 || r.Bytes != 400 {
		t.Errorf("%+v", r)
	}
	// The answering RST of 127.9.0.1 (nobody connected there) resets the half-open one.
	for deadline := time.Now().Add(5 * time.Second); attempts(t) == before; {
		if time.Now().After(deadline) {
			t.Fatal("no half-open connection was made and reset")
		}
		time.Sleep(10 * time.Millisecond) // poll
	}
}

// attempts is Tcp.AttemptFails: half-open connections that were reset.
func attempts(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/net/snmp")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if f[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i, n := range names {
			if n == "AttemptFails" {
				return f[i]
			}
		}
	}
	t.Fatal("no Tcp.AttemptFails in /proc/net/snmp")
	return ""
}

func TestRefusesTheWorld(t *testing.T) {
	for _, dst := range []string{"8.8.8.8:53", "[2606:4700::1111]:443"} {
		o := Options{Dst: netip.MustParseAddrPort(dst)}
		if isLab(o.Dst.Addr()) {
			t.Errorf("%s counts as a lab", dst)
		}
	}
}

func TestRefusesRealDevices(t *testing.T) {
	o := Options{Dst: netip.MustParseAddrPort("10.0.0.1:9")}
	for _, link := range []netlink.Link{
		&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}},
		&netlink.GenericLink{LinkType: "vxlan", LinkAttrs: netlink.LinkAttrs{Name: "vx"}},
	} {
		if err := allowed(&o, link); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), link.Attrs().Name) {
			t.Errorf("%s: %v, want a refusal that names it", link.Attrs().Name, err)
		}
	}
	for _, link := range []netlink.Link{
		&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v"}},
		&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "d"}},
		&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo", Flags: net.FlagLoopback}},
	} {
		if err := allowed(&o, link); err != nil {
			t.Errorf("%s: %v", link.Attrs().Name, err)
		}
	}
}

func TestSources(t *testing.T) {
	for _, c := range []struct {
		src   string
		limit int64
		i     int64
		want  string
	}{
		{"198.51.100.7", 0, 5, "198.51.100.7"},
		{"10.0.0.0/8", 0, 0x010203, "10.1.2.3"},
		{"10.0.0.0/8", 4, 5, "10.0.0.1"},
		{"10.0.0.9/30", 0, 7, "10.0.0.11"},
		{"2001:db8:7::/64", 0, 256, "2001:db8:7::100"},
	} {
		var s Source
		if err := s.UnmarshalText([]byte(c.src)); err != nil {
			t.Fatal(err)
		}
		o := Options{Src: s, Sources: c.limit}
		if got := o.source(c.i); got.String() != c.want {
			t.Errorf("source %d of %s: %s, want %s", c.i, c.src, got, c.want)
		}
	}
	var s Source
	if err := s.UnmarshalText([]byte("nonsense")); err == nil || !strings.Contains(err.Error(), "198.51.100.0/24") {
		t.Errorf("error without an example: %v", err)
	}
}
