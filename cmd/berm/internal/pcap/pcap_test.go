package pcap_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/cmd/berm/internal/pcap"
	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

const secret = "cookie: session=1"

// tcp4 is a segment of a person, with payload.
func tcp4(t testing.TB) []byte {
	t.Helper()
	f := mapstest.TCP(netip.MustParseAddrPort("198.51.100.77:50000"), netip.MustParseAddrPort("192.0.2.10:443"), mapstest.ACK)
	return append(f[:len(f)-16], secret[:16]...)
}

// within puts an IP packet into another.
func within(t testing.TB, f []byte, proto maps.Protocol) []byte {
	t.Helper()
	return mapstest.Frame(netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), proto, f[14:])
}

func TestRedact(t *testing.T) {
	four := tcp4(t)
	six := mapstest.UDP(netip.MustParseAddrPort("[2001:db8:1:2:3:4:5:6]:50000"), netip.MustParseAddrPort("[2001:db8::10]:443"), 30)
	vlan := append(append(bytes.Clone(four[:12]), 0x81, 0, 0, 7), four[12:]...)
	qinq := append(append(bytes.Clone(four[:12]), 0x88, 0xa8, 0, 7, 0x81, 0, 0, 9), four[12:]...)
	fragment := bytes.Clone(four)
	fragment[14+7] = 9 // its payload is the middle of somebody's data
	wrong := bytes.Clone(four)
	wrong[14+10] ^= 0xff
	icmp := mapstest.Frame(netip.MustParseAddr("203.0.113.5"), netip.MustParseAddr("192.0.2.10"), 1, append(make([]byte, 8), four[14:]...))
	for name, tc := range map[string]struct {
		in   []byte
		keep int    // bytes
		at   int    // of the client's address
		want string // that address, in hex
	}{
		"IPv4":                  {four, 14 + 20 + 20, 14 + 12, "c6336400"},
		"IPv6":                  {six, 14 + 40 + 8, 14 + 8, "20010db8000100000000000000000000"},
		"VLAN":                  {vlan, 18 + 40, 18 + 12, "c6336400"},
		"QinQ":                  {qinq, 22 + 40, 22 + 12, "c6336400"},
		"a tunnel":              {within(t, four, 4), 14 + 20 + 40, 14 + 20 + 12, "c6336400"},
		"IPv6 in a tunnel":      {within(t, six, 41), 14 + 20 + 40 + 8, 14 + 20 + 8, "20010db8000100000000000000000000"},
		"a tunnel in a tunnel":  {within(t, within(t, four, 4), 4), 14 + 40, 14 + 12, "0a000001"},
		"a later fragment":      {fragment, 14 + 20, 14 + 12, "c6336400"},
		"ICMP quotes a person":  {icmp, 14 + 20 + 8, 14 + 12, "cb007100"},
		"a wrong checksum":      {wrong, 14 + 40, 14 + 12, "c6336400"},
		"cut in the TCP header": {four[:14+25], 14 + 25, 14 + 12, "c6336400"},
		"cut in the IP header":  {four[:14+19], 14, 6, hex.EncodeToString(four[6:10])},
		"ARP":                   {append(append(bytes.Clone(four[:12]), 8, 6), secret...), 14, 6, hex.EncodeToString(four[6:10])},
	} {
		in := bytes.Clone(tc.in)
		got := pcap.Redact(in)
		if len(got) != tc.keep || hex.EncodeToString(got[tc.at:tc.at+len(tc.want)/2]) != tc.want {
			t.Errorf("%s: % x, want %d bytes, with %s at %d", name, got, tc.keep, tc.want, tc.at)
		}
		if bytes.Contains(got, []byte("cookie")) {
			t.Errorf("%s: payload is left: %q", name, got)
		}
	}
	if got := pcap.Redact(four[:13]); len(got) != 0 {
		t.Errorf("half an Ethernet header: % x", got)
	}
}

func FuzzRedact(f *testing.F) {
	f.Add(tcp4(f))
	f.Add(within(f, tcp4(f), 4))
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bytes.Clone(b)
		if got := pcap.Redact(in); len(got) > len(b) {
			t.Fatalf("%d bytes of %d", len(got), len(b))
		}
	})
}

// TestTsharkReads: what we write, others read, with the comment and the checksums right.
func TestTsharkReads(t *testing.T) {
	_, err := exec.LookPath("tshark")
	mapstest.Require(t, err)
	var b bytes.Buffer
	w, err := pcap.NewWriter(&b, "berm test", "kernel half", 128)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2030, 1, 2, 3, 4, 5, 6789, time.UTC)
	frame := pcap.Redact(tcp4(t))
	for i, comment := range []string{"stage=geo reason=geo vip=web", "stage=rate"} {
		if err := w.Packet(at.Add(time.Duration(i)*time.Second), frame, 1500, comment); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Stats(at, 345, 6); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "a.pcapng")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("tshark", "-n", "-r", path, "-o", "ip.check_checksum:TRUE", "-T", "fields", "-e", "frame.time_epoch", "-e", "frame.len", "-e", "frame.interface_name",
		"-e", "ip.src", "-e", "ip.checksum.status", "-e", "tcp.dstport", "-e", "frame.comment")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err, stderr.String())
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	want := "1893553445.000006789\t1500\tkernel half\t198.51.100.0\t1\t443\tstage=geo reason=geo vip=web"
	if len(lines) != 2 || lines[0] != want {
		t.Errorf("tshark reads %q, want %q", lines, want)
	}
}

func TestWriterTellsOfAFullDisk(t *testing.T) {
	if _, err := pcap.NewWriter(full{}, "berm", "kernel half", 128); err == nil || !strings.Contains(err.Error(), "write the capture: no space left") {
		t.Errorf("%v", err)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }
