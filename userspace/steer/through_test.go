package steer

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

func TestServicesOf(t *testing.T) {
	server := Backend{Name: "www1", Address: addr("192.0.2.11"), Via: maps.ViaIPIP}
	six := Backend{Name: "www6", Address: addr("2001:db8::11"), Via: maps.ViaIPIP}
	at := func(s ...string) (out []netip.AddrPort) {
		for _, x := range s {
			out = append(out, netip.MustParseAddrPort(x))
		}
		return out
	}
	c := Config{
		Sets: map[string][]Backend{"web": {server, six}, "mail": {server}, "other": {six}},
		Services: map[string][]netip.AddrPort{
			"web":   at("198.51.100.10:443", "198.51.100.10:80", "[2001:db8:1::10]:443"),
			"mail":  at("198.51.100.5:443", "198.51.100.20:0"),
			"other": at("198.51.100.30:443"),
		},
	}
	for _, x := range []struct {
		of   Backend
		port uint16
		want []netip.Addr
	}{
		{server, 443, []netip.Addr{addr("198.51.100.5"), addr("198.51.100.10")}},
		{server, 80, []netip.Addr{addr("198.51.100.10")}},
		{server, 8080, []netip.Addr{addr("198.51.100.5"), addr("198.51.100.10"), addr("198.51.100.20")}},
		{six, 80, []netip.Addr{addr("2001:db8:1::10")}},
		{Backend{Name: "www9", Address: addr("192.0.2.19")}, 80, nil},
	} {
		if got := c.servicesOf(x.of, Probe{Port: x.port}); !slices.Equal(got, x.want) {
			t.Errorf("%s at port %d is asked for %v, want %v", x.of.Name, x.port, got, x.want)
		}
	}
}

// A probe is known to the kernel half while it lasts, asks for one service after the other, and ends with a reset. Where
// nothing puts its packets into the tunnel it says so, and what it has found out counts.
func TestThrough(t *testing.T) {
	k := mapstest.New(t)
	for _, host := range []string{"127.0.0.3", "::1"} {
		services := []netip.Addr{addr("198.51.100.10"), addr("198.51.100.20")}
		if addr(host).Is6() {
			services = []netip.Addr{addr("2001:db8::10"), addr("2001:db8::20")}
		}
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		type seen struct {
			local uint16
			probe maps.Probe
			end   error
		}
		asked := make(chan seen, 4)
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				s := seen{local: uint16(conn.RemoteAddr().(*net.TCPAddr).Port)}
				s.probe, _, _ = k.Probes.Get(s.local)
				_, s.end = conn.Read(make([]byte, 1))
				asked <- s
				conn.Close()
			}
		}()
		port := uint16(l.Addr().(*net.TCPAddr).Port)
		p := Probe{Protocol: "tcp", Port: port, Timeout: 10 * time.Second}
		var told []string
		way := &through{probes: k.Probes, backend: 7, server: addr(host), services: services, tell: func(why string) { told = append(told, why) }}
		for i := range 3 {
			if err := way.ask(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			s := <-asked
			if !errors.Is(s.end, syscall.ECONNRESET) {
				t.Errorf("ends with %v, want a reset", s.end)
			}
			// The probe may be over before the server has looked.
			if want := (maps.Probe{Local: s.local, Server: addr(host), Service: services[i%2], Port: port, Backend: 7}); s.probe != want && s.probe != (maps.Probe{}) {
				t.Errorf("probe %d: %+v, want %+v", i, s.probe, want)
			}
			if left, _, err := k.Probes.Get(s.local); !errors.Is(err, maps.ErrNotFound) {
				t.Errorf("left behind: %+v, %v", left, err)
			}
		}
		if !slices.Equal(told, []string{noEgress, noEgress, noEgress}) {
			t.Errorf("told %q", told)
		}
		l.Close()
		if err := way.ask(t.Context(), p); !errors.Is(err, syscall.ECONNREFUSED) || strings.Contains(err.Error(), "tunnel") {
			t.Errorf("refused at its own address: %v", err)
		}
		if way.turn != 3 {
			t.Errorf("turn %d: the service that failed is not asked for again", way.turn)
		}
	}
}
