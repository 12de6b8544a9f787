package control_test

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/quiclb"
)

func readCID(f maps.CIDFormat, cid []byte) (uint64, error) {
	return quiclb.Number(quiclb.Format(f), cid)
}

// cidWorld has backends of every kind, with server IDs and rows.
func cidWorld(t *testing.T, k *mapstest.Kernel) (formats []maps.CIDFormat) {
	t.Helper()
	must := func(id uint32, err error) uint32 {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	set := must(k.Sets.Put(maps.BackendSet{Name: "edges"}))
	var servers []maps.Server
	ids := map[string]uint32{}
	for i, name := range []string{"me", "you", "row", "lost", "other"} {
		id := must(k.Backends.Put(maps.Backend{Name: name, Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})}))
		ids[name] = id
		if name != "lost" {
			must(0, k.Backends.SetNextHop(id, maps.NextHop{Ready: true, MAC: maps.MAC{2, 0, 0, 0, 0, byte(i)}, SourceMAC: maps.MAC{2, 0, 0, 0, 0, 9}}))
		}
		s := maps.Server{ID: uint64(i + 1), Backend: id, Sets: []uint32{set}}
		if name == "other" {
			s.Sets = []uint32{set + 1}
		}
		servers = append(servers, s)
	}
	must(0, k.Config.SetSelf(maps.Self{Backend: ids["me"], Address4: netip.MustParseAddr("10.0.0.1")}))
	rows := make([]maps.Row, maps.RowCount)
	for i := range rows {
		rows[i] = maps.Row{Owner: uint16(ids["row"])}
	}
	must(0, k.Rows.Write(set, rows))
	formats = []maps.CIDFormat{{ID: 0, ServerIDLen: 2, NonceLen: 6}, {ID: 1, ServerIDLen: 2, NonceLen: 14, Key: []byte("0123456789abcdef")}}
	must(0, k.CIDs.Replace(formats, servers))
	for i, quic := range []bool{true, false} {
		must(k.VIPs.Put(maps.VIP{
			Name: fmt.Sprint("quic", i), Address: netip.MustParseAddr("192.0.2.1"), Port: uint16(443 + i), Protocol: maps.ProtocolUDP, Backends: "edges", QUIC: quic,
		}))
	}
	return formats
}

// What explain says of a connection ID is what the program does with its packets.
func TestExplainCIDAgreesWithTheKernel(t *testing.T) {
	k := mapstest.New(t)
	formats := cidWorld(t, k)
	l := control.NewLocal(k.Set, nil).WithCIDs(readCID)
	src := netip.MustParseAddrPort("198.51.100.7:5000")
	var seen []string
	for _, port := range []uint16{443, 444} {
		dst := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port)
		for _, f := range append(formats, maps.CIDFormat{ID: 5, ServerIDLen: 2, NonceLen: 6}) {
			codec, err := quiclb.New(quiclb.Format(f))
			if err != nil {
				t.Fatal(err)
			}
			for server := uint64(1); server <= 6; server++ {
				nonce := make([]byte, f.NonceLen)
				binary.BigEndian.PutUint32(nonce, rand.Uint32())
				cid := codec.Encode(quiclb.ServerID(server, 2), nonce)
				s, err := l.ExplainSteer(t.Context(), control.Flow{Protocol: "udp", Source: src, Destination: dst, CID: hex.EncodeToString(cid)})
				if err != nil {
					t.Fatal(err)
				}
				segment := make([]byte, 8, 60)
				binary.BigEndian.PutUint16(segment, src.Port())
				binary.BigEndian.PutUint16(segment[2:], port)
				segment = append(append(append(segment, 0x40), cid...), make([]byte, 24)...)
				binary.BigEndian.PutUint16(segment[4:], uint16(len(segment)))
				action, out := k.Run(t, mapstest.Frame(src.Addr(), dst.Addr(), maps.ProtocolUDP, segment))
				got := "local to me"
				if mapstest.Action(action) == "tx" {
					got = fmt.Sprintf("forward to 10.0.0.%d", out[33])
				}
				b, err := k.Backends.Get(s.Owner)
				if err != nil {
					t.Fatal(err)
				}
				want := fmt.Sprintf("%s to %s", s.Delivery, b.Address)
				if s.Owner == "me" {
					want = s.Delivery + " to me"
				}
				if got != want {
					t.Errorf("port %d, format %d, server ID %d: explained as %s, went %s: %q", port, f.ID, server, want, got, s.Steps)
				}
				seen = append(seen, s.Steps...)
			}
		}
	}
	all := strings.Join(seen, "\n")
	for _, want := range []string{
		"server ID 2 is that of you", "is this host", "is ready", "next hop of lost", "other is no backend of set edges", "no backend has server ID 6",
		"format 5, which is not in force", "in the clear", "encrypted", "does not steer by connection ID",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("nothing was explained with %q", want)
		}
	}
}

func TestExplainCIDAlone(t *testing.T) {
	k := mapstest.New(t)
	cidWorld(t, k)
	c := mustServe(t, &testDaemon{tables: control.NewLocal(k.Set, nil).WithCIDs(readCID)})
	for cid, want := range map[string]string{
		"080002aabbccddeeff":     "you forward",
		"080001aabbccddeeff":     "me local",
		"080002aabbccddeeff0102": "you forward", // as a short header has it, with what follows
		"080004aabbccddeeff":     " by row",
		"080002aabbccddee":       " by row",
		"e80002aabbccddeeff":     " by row",
	} {
		if want == " by row" && cid[4:6] == "04" {
			want = "lost by row"
		}
		s, err := c.ExplainSteer(t.Context(), control.Flow{CID: cid})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Owner + " " + s.Delivery; got != want || len(s.Steps) == 0 {
			t.Errorf("%s: %q, want %q: %q", cid, got, want, s.Steps)
		}
	}
	s, err := c.ExplainSteer(t.Context(), control.Flow{CID: "080002aabbccddeeff01", Long: true})
	if err != nil || s.Owner != "" {
		t.Errorf("a long header's, of another length: %+v, %v", s, err)
	}
	if _, err := c.ExplainSteer(t.Context(), control.Flow{CID: "xyz"}); err == nil || !strings.Contains(err.Error(), "want hex digits") {
		t.Errorf("what is no hex: %v", err)
	}
	if _, err := control.NewLocal(k.Set, nil).ExplainSteer(t.Context(), control.Flow{CID: "00"}); err == nil {
		t.Error("a connection ID was read by nobody")
	}
}
