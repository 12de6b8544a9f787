package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/cmd/berm/internal/pcap"
	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
	"github.com/bermedge/berm/userspace/config"
)

// record writes n packets, a millisecond apart, of which one in fifty comes from 203.0.113.0/24.
func record(t *testing.T, n int) string {
	t.Helper()
	var b bytes.Buffer
	w, err := pcap.NewWriter(&b, "test", "eth0", 2047)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		source := netip.AddrFrom4([4]byte{198, 51, byte(i % 100), 7})
		if i%50 == 0 {
			source = netip.AddrFrom4([4]byte{203, 0, 113, byte(i / 50)})
		}
		f := mapstest.TCP(netip.AddrPortFrom(source, 999), netip.MustParseAddrPort("192.0.2.10:443"), mapstest.ACK)
		if err := w.Packet(time.Unix(1700000000, int64(i)*1e6), f, len(f), ""); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "a.pcapng")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestReplay: a rule that would block 2 % of good traffic is told before it does.
func TestReplay(t *testing.T) {
	k := mapstest.New(t)
	pins := filepath.Dir(k.Pin(t))
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("node: {name: edge1}\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const vip = "vips: [{name: web, address: 192.0.2.10, port: 443, protocol: tcp%s}]\n"
	same := write("same.yaml", fmt.Sprintf(vip, ""))
	cfg, err := config.Load(same)
	if err != nil {
		t.Fatal(err)
	}
	// What runs is what the file says, and a verdict and a VIP of an operator.
	if err := fill(t.Context(), k.Set, k.Set, cfg); err != nil {
		t.Fatal(err)
	}
	if err := k.Verdicts.Put(maps.Verdict{Source: netip.MustParseAddr("198.51.1.7"), VIP: "web", Action: maps.ActionDrop}); err != nil {
		t.Fatal(err)
	}
	if _, err := k.VIPs.Put(maps.VIP{Name: "mine", Address: netip.MustParseAddr("192.0.2.11"), Port: 1, Protocol: maps.ProtocolTCP}); err != nil {
		t.Fatal(err)
	}
	before, err := k.Stats.Stages()
	if err != nil {
		t.Fatal(err)
	}
	file, few := record(t, 1000), record(t, 20)
	replay := func(args ...string) (int, replayed, string) {
		t.Helper()
		var stdout, stderr strings.Builder
		args = append([]string{"--json", "--config", same, "--pins", pins, "replay"}, args...)
		code := run(context.Background(), args, strings.NewReader(""), &stdout, &stderr)
		var r replayed
		if stdout.Len() > 0 {
			if err := json.Unmarshal([]byte(stdout.String()), &r); err != nil {
				t.Fatal(err, stdout.String())
			}
		}
		return code, r, stderr.String()
	}
	if code, r, said := replay(file); code != 0 || r.Packets != 1000 || r.Ours != 1000 || len(r.Differences) != 0 {
		t.Errorf("the same: exit code %d, %+v %s", code, r, said)
	}
	// What an operator has put in shadow stays so: no file says it.
	if err := k.Config.SetShadow(maps.DropVerdict); err != nil {
		t.Fatal(err)
	}
	if code, r, said := replay(few); code != 0 || r.Ours != 20 || len(r.Differences) != 0 {
		t.Errorf("the same, with a reason in shadow: exit code %d, %+v %s", code, r, said)
	}
	if err := k.Config.SetShadow(); err != nil {
		t.Fatal(err)
	}
	bad := write("bad.yaml", fmt.Sprintf(vip, "")+"geo: {overrides: [{prefix: 203.0.113.0/24, acl: drop}]}\n")
	code, r, said := replay(file, "--candidate", bad)
	if code != 1 || len(r.Differences) != 1 || r.Differences[0].Running != "passed" || r.Differences[0].Candidate != "dropped: acl" || r.Differences[0].Packets != 20 ||
		len(r.Differences[0].Prefixes) != 1 || r.Differences[0].Prefixes[0] != (prefixCount{netip.MustParsePrefix("203.0.113.0/24"), 20}) {
		t.Errorf("a bad rule: exit code %d, %+v %s", code, r, said)
	}
	// Ten packets in a second from each source, at the recorded pace: five a second let about half pass.
	slow := write("slow.yaml", fmt.Sprintf(vip, ", rate: slow")+"rate: {classes: {slow: {packets: 5, packets_burst: 1}}}\n")
	code, r, said = replay(file, "--candidate", slow)
	if code != 1 || len(r.Differences) != 1 || r.Differences[0].Candidate != "dropped: rate_packets" || r.Differences[0].Packets < 300 || r.Differences[0].Packets > 700 {
		t.Errorf("a limit: exit code %d, %+v %s", code, r, said)
	}
	gone := write("gone.yaml", "vips: [{name: web, address: 192.0.2.99, port: 443, protocol: tcp}]\n")
	if code, r, said := replay(file, "--candidate", gone); code != 1 || len(r.Differences) != 2 || r.Differences[0].Candidate != "foreign" || r.Differences[0].Packets < 900 || r.Differences[1].Running != "dropped: verdict" {
		t.Errorf("a VIP that goes: exit code %d, %+v %s", code, r, said)
	}
	if after, err := k.Stats.Stages(); err != nil || fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("replaying counted: %v, before %v (%v)", after, before, err)
	}
	whole, err := os.ReadFile(few)
	if err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(dir, "broken.pcapng")
	if err := os.WriteFile(broken, whole[:len(whole)-10], 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, said := replay(broken); code != 2 || !strings.Contains(said, "broken.pcapng: offset ") {
		t.Errorf("a broken file: exit code %d, %s", code, said)
	}
	if code, _, said := replay(file, "--candidate", write("odd.yaml", "nonsense: 1\n")); code != 2 || !strings.Contains(said, "nonsense") {
		t.Errorf("a broken candidate: exit code %d, %s", code, said)
	}
	if code, _, said := replay(filepath.Join(dir, "none.pcap")); code != 2 {
		t.Errorf("no file: exit code %d, %s", code, said)
	}
}

// TestReplayedInWords: where nothing was for a VIP, that nothing differs says nothing.
func TestReplayedInWords(t *testing.T) {
	for want, r := range map[string]replayed{
		"20 packets, 0 for a VIP\nnothing was compared": {Packets: 20},
		"20 packets, 1 for a VIP\nno packet fares":      {Packets: 20, Ours: 1},
	} {
		var b strings.Builder
		(&app{out: &out.Printer{W: &b}}).replayed(r)
		if !strings.HasPrefix(b.String(), want) {
			t.Errorf("%+v: %q, want %q", r, b.String(), want)
		}
	}
}
