package steer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	bermmaps "github.com/bermedge/berm/maps"
)

// tunnel notices that a server does not take GUE: the daemon may send datagrams, and hosts say when nobody
// listens at a port. One that stays silent may be a firewall, and is not held against it.
type tunnel struct {
	to      netip.AddrPort
	conn    net.Conn
	refused time.Time // last
}

// tunnelRefused is how long a refusal counts. Hosts tell one a second, and need not tell each.
const tunnelRefused = 3 * time.Second

var errTunnelRefused = errors.New("nobody takes GUE there")

// newTunnel is nil where nothing can be told.
func newTunnel(b *backend) *tunnel {
	if b.via != bermmaps.ViaGUE {
		return nil
	}
	return &tunnel{to: netip.AddrPortFrom(b.address, b.port)}
}

// check sends what is dropped silently at the end of the tunnel, and hears of what was sent before.
func (t *tunnel) check() error {
	if t == nil {
		return nil
	}
	if t.conn == nil {
		conn, err := net.Dial("udp", t.to.String())
		if err != nil {
			return fmt.Errorf("tunnel: %w", err)
		}
		t.conn = conn
	}
	if _, err := t.conn.Write(nothingFor(t.to.Addr())); errors.Is(err, syscall.ECONNREFUSED) {
		t.refused = time.Now()
	}
	if time.Since(t.refused) < tunnelRefused {
		return fmt.Errorf("UDP port %d: %w", t.to.Port(), errTunnelRefused)
	}
	return nil
}

func (t *tunnel) close() {
	if t != nil && t.conn != nil {
		_ = t.conn.Close() // holds nothing
	}
}

// nothingFor is an IPv6 packet without payload (next header 59, RFC 8200, section 4.7), from the address
// that it goes to: no stack answers it.
func nothingFor(to netip.Addr) []byte {
	b := binary.BigEndian.AppendUint32(nil, 6<<28)
	b = append(b, 0, 0, 59, 1)
	a := to.As16()
	return append(append(b, a[:]...), a[:]...)
}
