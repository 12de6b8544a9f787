package maps_test

import (
	"crypto/aes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	mrand "math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
	"github.com/bermedge/berm/userspace/quiclb"
)

// quicService is a service whose rows all name one backend, and another that only connection IDs do.
func quicService(t *testing.T, k *mapstest.Kernel) (byRow, byCID, set uint32) {
	t.Helper()
	put := func(name, addr string) uint32 {
		id, err := k.Backends.Put(maps.Backend{Name: name, Address: netip.MustParseAddr(addr)})
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Backends.SetNextHop(id, maps.NextHop{Ready: true, MAC: maps.MAC{2, 0, 0, 0, 1, byte(id)}}); err != nil {
			t.Fatal(err)
		}
		return id
	}
	byRow, byCID = put("row", "203.0.113.1"), put("cid", "203.0.113.2")
	set, err := k.Sets.Put(maps.BackendSet{Name: "edges"})
	if err != nil {
		t.Fatal(err)
	}
	rows := make([]maps.Row, maps.RowCount)
	for i := range rows {
		rows[i].Owner = uint16(byRow)
	}
	if err := k.Rows.Write(set, rows); err != nil {
		t.Fatal(err)
	}
	if err := k.Config.SetSelf(maps.Self{Address4: netip.MustParseAddr("203.0.113.9")}); err != nil {
		t.Fatal(err)
	}
	v := service("quic", "192.0.2.10", 443)
	v.Protocol, v.Backends, v.QUIC = maps.ProtocolUDP, "edges", true
	if _, err := k.VIPs.Put(v); err != nil {
		t.Fatal(err)
	}
	return byRow, byCID, set
}

func quicPacket(cid []byte) []byte {
	segment := make([]byte, 8, 60)
	binary.BigEndian.PutUint16(segment, 40000)
	binary.BigEndian.PutUint16(segment[2:], 443)
	segment = append(append(append(segment, 0x40), cid...), make([]byte, 24)...)
	binary.BigEndian.PutUint16(segment[4:], uint16(len(segment)))
	return mapstest.Frame(netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("192.0.2.10"), maps.ProtocolUDP, segment)
}

// sentTo is the outer destination of a frame that was sent on.
func sentTo(t *testing.T, k *mapstest.Kernel, frame []byte) netip.Addr {
	t.Helper()
	action, out := k.Run(t, frame)
	if mapstest.Action(action) != "tx" {
		t.Fatalf("action %s", mapstest.Action(action))
	}
	return netip.AddrFrom4([4]byte(out[30:34]))
}

// TestCIDsAgreeWithKernel has the kernel half read the connection IDs that the codec writes, in every
// format that it knows.
func TestCIDsAgreeWithKernel(t *testing.T) {
	k := mapstest.New(t)
	_, byCID, set := quicService(t, k)
	rowAddr, cidAddr := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")
	for size := 1; size <= maps.MaxServerIDLen; size++ {
		for nonce := 4; size+nonce <= 19; nonce++ {
			for _, secret := range []bool{false, true} {
				f := maps.CIDFormat{ID: uint8(mrand.IntN(7)), ServerIDLen: size, NonceLen: nonce}
				if secret {
					f.Key = make([]byte, aes.BlockSize)
					_, _ = rand.Read(f.Key) // never fails
				}
				codec, err := quiclb.New(quiclb.Format{ID: f.ID, ServerIDLen: f.ServerIDLen, NonceLen: f.NonceLen, Key: f.Key})
				if err != nil {
					t.Fatal(err)
				}
				id := mrand.Uint64() >> (64 - 8*size)
				if err := k.CIDs.Replace([]maps.CIDFormat{f}, []maps.Server{{ID: id, Backend: byCID, Sets: []uint32{set}}}); err != nil {
					t.Fatal(err)
				}
				for _, c := range []struct {
					id   uint64
					want netip.Addr
				}{{id, cidAddr}, {id ^ 1, rowAddr}, {id ^ 1<<(8*size-1), rowAddr}} {
					var server [8]byte
					binary.BigEndian.PutUint64(server[:], c.id)
					n := make([]byte, nonce)
					_, _ = rand.Read(n) // never fails
					cid := codec.Encode(server[8-size:], n)
					if got := sentTo(t, k, quicPacket(cid)); got != c.want {
						t.Fatalf("%+v, server ID %#x, connection ID %x: sent to %s, want %s", f, c.id, cid, got, c.want)
					}
				}
			}
		}
	}
}

func TestCIDsReplace(t *testing.T) {
	k := mapstest.New(t)
	old := maps.CIDFormat{ID: 0, ServerIDLen: 2, NonceLen: 6}
	fresh := maps.CIDFormat{ID: 1, ServerIDLen: 2, NonceLen: 14, Key: []byte("0123456789abcdef")}
	feistel := maps.CIDFormat{ID: 6, ServerIDLen: 3, NonceLen: 4, Key: []byte("fedcba9876543210")}
	one, two := maps.Server{ID: 1, Backend: 1, Sets: []uint32{1, 63}}, maps.Server{ID: 1 << 40, Backend: 2, Sets: []uint32{2}}
	for _, step := range []struct {
		formats []maps.CIDFormat
		servers []maps.Server
	}{
		{[]maps.CIDFormat{old}, []maps.Server{one}},
		{[]maps.CIDFormat{old, fresh, feistel}, []maps.Server{one, two}},
		{[]maps.CIDFormat{fresh}, []maps.Server{two}},
		{nil, nil},
	} {
		if err := k.CIDs.Replace(step.formats, step.servers); err != nil {
			t.Fatal(err)
		}
		formats, err := k.CIDs.Formats()
		if err != nil || !reflect.DeepEqual(formats, step.formats) {
			t.Errorf("formats %+v, %v, want %+v", formats, err, step.formats)
		}
		servers, err := k.CIDs.Servers()
		if err != nil || !reflect.DeepEqual(servers, step.servers) {
			t.Errorf("servers %+v, %v, want %+v", servers, err, step.servers)
		}
		for _, s := range []maps.Server{one, two} {
			_, err := k.CIDs.Server(s.ID)
			has := len(step.servers) > 0 && (step.servers[0].ID == s.ID || step.servers[len(step.servers)-1].ID == s.ID)
			if has && err != nil || !has && !errors.Is(err, maps.ErrNotFound) {
				t.Errorf("server %d: %v", s.ID, err)
			}
		}
	}
}

func TestCIDsRefuse(t *testing.T) {
	k := mapstest.New(t)
	good := maps.CIDFormat{ServerIDLen: 2, NonceLen: 6}
	many := make([]maps.Server, 4097)
	for i := range many {
		many[i] = maps.Server{ID: 1<<16 + uint64(i), Backend: 1}
	}
	for want, c := range map[string]struct {
		formats []maps.CIDFormat
		servers []maps.Server
	}{
		"format 7: want 0 to 6":            {formats: []maps.CIDFormat{{ID: 7, ServerIDLen: 1, NonceLen: 4}}},
		"server ID of 9 bytes":             {formats: []maps.CIDFormat{{ServerIDLen: 9, NonceLen: 4}}},
		"nonce of 3 bytes":                 {formats: []maps.CIDFormat{{ServerIDLen: 1, NonceLen: 3}}},
		"nonce of 18 bytes":                {formats: []maps.CIDFormat{{ServerIDLen: 2, NonceLen: 18}}},
		"key of 3 bytes":                   {formats: []maps.CIDFormat{{ServerIDLen: 2, NonceLen: 6, Key: []byte("abc")}}},
		"format 0: already taken":          {formats: []maps.CIDFormat{good, good}},
		"server ID 5: already taken":       {servers: []maps.Server{{ID: 5, Backend: 1}, {ID: 5, Backend: 2}}},
		"server ID 5: set 64":              {servers: []maps.Server{{ID: 5, Backend: 1, Sets: []uint32{64}}}},
		"4097 server IDs above 65535: tab": {servers: many},
	} {
		if err := k.CIDs.Replace(c.formats, c.servers); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if err := (maps.VIP{Name: "q", Address: netip.MustParseAddr("192.0.2.1"), Port: 443, Protocol: maps.ProtocolTCP, QUIC: true}).Validate(); err == nil || !strings.Contains(err.Error(), "QUIC runs over udp") {
		t.Errorf("QUIC over TCP: %v", err)
	}
}
