// Package gate keeps what the kernel half needs to answer in place of this host's stack: the way to
// clients, the size of segments, and what the kernel's own settings make of a SYN cookie.
package gate

import (
	"fmt"
	"io/fs"
	"math/bits"
	"net/netip"
	"strconv"
	"strings"

	"github.com/bermedge/berm/maps"
)

// Resolver finds the next hop towards an address.
type Resolver interface {
	Resolve(addr netip.Addr) (maps.NextHop, error)
}

// Addresses that nobody routes, so that the way to them is the default route: the dummy address of
// RFC 7600, and one for benchmarks (RFC 5180).
var (
	anybody4 = netip.AddrFrom4([4]byte{192, 0, 0, 8})
	anybody6 = netip.AddrFrom16([16]byte{0x20, 0x01, 0, 2, 15: 1})
)

// Keeper keeps the kernel half's reply as this host is.
type Keeper struct {
	set      *maps.Set
	resolver Resolver
	proc     fs.FS // /proc/sys
	last     maps.Reply
	known    bool
}

// New returns a keeper. proc is /proc/sys.
func New(set *maps.Set, resolver Resolver, proc fs.FS) *Keeper {
	return &Keeper{set: set, resolver: resolver, proc: proc}
}

// Keep writes what has changed. What cannot be found out is left out: the kernel half does without.
func (k *Keeper) Keep() error {
	r := k.reply()
	if k.known && r == k.last {
		return nil
	}
	if err := k.set.Gates.SetReply(r); err != nil {
		return err
	}
	k.last, k.known = r, true
	return nil
}

func (k *Keeper) reply() (r maps.Reply) {
	r.MSS4, r.MSS6 = announced(k.set.Config.MTU(), k.set.Config.Self())
	if scale, ok := k.windowScale(); ok && k.number("net/ipv4/tcp_timestamps") == 2 {
		r.WindowScale, r.Options = scale, true
	}
	for to, via := range map[netip.Addr]*maps.NextHop{anybody4: &r.Via4, anybody6: &r.Via6} {
		// Without a default route, or while its next hop is being asked for, tunnelled SYNs go to the stack.
		if hop, err := k.resolver.Resolve(to); err == nil {
			*via = hop
		}
	}
	return r
}

// Sizes of headers, and of a packet on links of clients.
const (
	header4, header6, headerTCP = 20, 40, 20
	clientMTU                   = 1500
)

// Segments are the largest TCP segments that a client may send, by family: packets that hold them,
// and the tunnel's header where the first edge sends them on, fit the links of the edges. mtu is the
// largest packet there; where it is 0 there are no other edges, and no bound: 0.
func Segments(mtu int, self maps.Self) (four, six uint16) {
	if mtu == 0 {
		return 0, 0
	}
	room := mtu - header4
	if !self.Address4.IsValid() {
		room = mtu - header6
	}
	// What every link carries: the kernel half has these numbers too.
	const least4, least6 = 536, 1220
	return uint16(max(least4, room-header4-headerTCP)), uint16(max(least6, room-header6-headerTCP))
}

// announced are the segments that a SYN-ACK of ours announces: no more than fits the links of clients.
func announced(mtu int, self maps.Self) (four, six uint16) {
	const most4, most6 = clientMTU - header4 - headerTCP, clientMTU - header6 - headerTCP
	four, six = Segments(mtu, self)
	if mtu == 0 {
		return most4, most6
	}
	return min(four, most4), min(six, most6)
}

// number reads a setting; -1 when it cannot be read.
func (k *Keeper) number(name string) int {
	fields := k.fields(name)
	if len(fields) == 0 {
		return -1
	}
	return fields[0]
}

func (k *Keeper) fields(name string) (out []int) {
	text, err := fs.ReadFile(k.proc, name)
	if err != nil {
		return nil
	}
	for _, f := range strings.Fields(string(text)) {
		n, err := strconv.Atoi(f)
		if err != nil {
			return nil
		}
		out = append(out, n)
	}
	return out
}

// windowScale is what the kernel chooses when it makes a connection of a cookie (its
// tcp_select_initial_window): enough for the largest buffer that a socket may get. Clients have to be
// told the same in the SYN-ACK.
func (k *Keeper) windowScale() (scale uint8, ok bool) {
	rmem := k.fields("net/ipv4/tcp_rmem")
	most := k.number("net/core/rmem_max")
	if len(rmem) != 3 || most <= 0 || k.number("net/ipv4/tcp_window_scaling") != 1 || k.number("net/ipv4/tcp_sack") != 1 {
		return 0, false
	}
	const mostScale, bitsUnscaled = 14, 16
	space := min(max(rmem[2], most), 65535<<mostScale)
	return uint8(min(max(bits.Len(uint(space))-bitsUnscaled, 0), mostScale)), true
}

// Problems says what keeps a service's gate from working.
func (k *Keeper) Problems() ([]string, error) {
	list, err := k.set.VIPs.List()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, v := range list {
		if v.Gate.Cookies != maps.GateOff {
			names = append(names, v.Name)
		}
	}
	mode := k.number("net/ipv4/tcp_syncookies")
	if len(names) == 0 || mode == 2 {
		return nil, nil
	}
	is := strconv.Itoa(mode)
	if mode < 0 {
		is = "not to be read"
	}
	return []string{fmt.Sprintf("SYN floods on %s are left to the stack: net.ipv4.tcp_syncookies is %s, and the kernel makes cookies for others only while it is 2 (sysctl -w net.ipv4.tcp_syncookies=2)",
		strings.Join(names, ", "), is)}, nil
}
