package pcap_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/cmd/berm/internal/pcap"
)

// classic is a pcap file of one packet.
func classic(order binary.ByteOrder, magic, link, length uint32, frame []byte) []byte {
	b := make([]byte, 40)
	for at, v := range map[int]uint32{0: magic, 4: 2 | 4<<16, 16: 65535, 20: link, 24: 1700000000, 28: 5, 32: length, 36: length} {
		order.PutUint32(b[at:], v)
	}
	return append(b, frame...)
}

// ng is a pcapng file of two packets.
func ng(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := pcap.NewWriter(&b, "berm", "kernel half", 128)
	for i := range 2 {
		if err == nil {
			err = w.Packet(time.Unix(1700000000, int64(7+i)), []byte("fourteen octets and more")[:20+i], 1500, "a comment")
		}
	}
	if err == nil {
		err = w.Stats(time.Unix(1700000009, 0), 2, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// read returns the frames of a file and how it ended.
func read(b []byte) (frames []string, times []time.Time, err error) {
	r, err := pcap.NewReader(bytes.NewReader(b))
	for err == nil {
		var at time.Time
		var f []byte
		if at, f, err = r.Next(); err == nil {
			frames, times = append(frames, string(f)), append(times, at)
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return frames, times, err
}

func TestRead(t *testing.T) {
	for name, tc := range map[string]struct {
		in []byte
		ns int64
		n  int
	}{
		"pcapng":                             {ng(t), 7, 2},
		"pcap, microseconds":                 {classic(binary.LittleEndian, 0xa1b2c3d4, 1, 20, []byte("fourteen octets and ")), 5000, 1},
		"pcap, nanoseconds, the other order": {classic(binary.BigEndian, 0xa1b23c4d, 1, 20, []byte("fourteen octets and ")), 5, 1},
	} {
		frames, times, err := read(tc.in)
		if err != nil || len(frames) != tc.n || frames[0] != "fourteen octets and " || !times[0].Equal(time.Unix(1700000000, tc.ns)) {
			t.Errorf("%s: %q %v %v", name, frames, times, err)
		}
	}
}

func TestReadBroken(t *testing.T) {
	whole := ng(t)
	at := func(offset int, v uint32) []byte {
		b := bytes.Clone(whole)
		binary.LittleEndian.PutUint32(b[offset:], v)
		return b
	}
	section := int(binary.LittleEndian.Uint32(whole[4:]))
	iface := section + int(binary.LittleEndian.Uint32(whole[section+4:])) // where the first packet's block begins
	frame := []byte("fourteen octets and ")
	for name, tc := range map[string]struct {
		in   []byte
		want string
	}{
		"nothing":                      {nil, "offset 0: no pcap or pcapng file: it has 0 bytes"},
		"a picture":                    {[]byte("\x89PNG\r\n\x1a\n"), "offset 0: no pcap or pcapng file: it begins with 89504e47"},
		"pcap of another link":         {classic(binary.LittleEndian, 0xa1b2c3d4, 101, 20, frame), "offset 24: link type 101: want Ethernet"},
		"pcap cut in the head":         {classic(binary.LittleEndian, 0xa1b2c3d4, 1, 20, frame)[:20], "offset 0: the file ends after 20 of 24 bytes"},
		"pcap cut in a packet's head":  {classic(binary.LittleEndian, 0xa1b2c3d4, 1, 20, frame)[:30], "offset 24: the file ends after 6 of 16 bytes"},
		"pcap cut before a packet":     {classic(binary.LittleEndian, 0xa1b2c3d4, 1, 20, nil), "offset 40: the file ends after 0 of 20 bytes"},
		"pcap of a monstrous packet":   {classic(binary.LittleEndian, 0xa1b2c3d4, 1, 1<<30, frame), "offset 40: a packet of 1073741824 bytes"},
		"pcapng cut":                   {whole[:iface+30], "the file ends after 22 of"},
		"pcapng of an odd block":       {at(iface+4, 17), "a block of 17 bytes"},
		"pcapng of a monstrous block":  {at(iface+4, 1<<30), "a block of 1073741824 bytes"},
		"pcapng of a tiny block":       {at(iface+4, 8), "a block of 8 bytes"},
		"pcapng whose lengths differ":  {at(section-4, 999), "ends with length 999"},
		"pcapng of another byte order": {at(8, 7), "byte order 07000000"},
		"pcapng of another link":       {at(section+8, 101), "link type 101: want Ethernet"},
		"pcapng of a lost interface":   {at(iface+8, 3), "a packet of interface 3, of which there are 1"},
		"pcapng of a packet beyond":    {at(iface+20, 900), "a packet of 900 bytes in a block that holds"},
	} {
		if frames, _, err := read(tc.in); err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "offset ") {
			t.Errorf("%s: %q, %v; want %s", name, frames, err, tc.want)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(ng(f))
	f.Add(classic(binary.LittleEndian, 0xa1b2c3d4, 1, 20, []byte("fourteen octets and ")))
	f.Fuzz(func(t *testing.T, b []byte) {
		frames, _, err := read(b)
		total := 0
		for _, f := range frames {
			total += len(f)
		}
		if total > len(b) || err != nil && !strings.HasPrefix(err.Error(), "offset ") {
			t.Fatalf("%d bytes of frames from %d, %v", total, len(b), err)
		}
	})
}
