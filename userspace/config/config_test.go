package config

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bermedge/berm/maps"
)

var update = flag.Bool("update", false, "write what is reported now as what should be")

// Each broken file stands beside what is reported about it.
func TestBrokenFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/broken/*.yaml")
	if err != nil || len(files) < 10 {
		t.Fatal(files, err)
	}
	for _, path := range files {
		cfg, err := Load(path)
		var ps Problems
		if cfg != nil || !errors.As(err, &ps) || len(ps) == 0 {
			t.Errorf("%s was accepted: %v", path, err)
			continue
		}
		got := []byte(ps.Error() + "\n")
		golden := strings.TrimSuffix(path, ".yaml") + ".txt"
		if *update {
			if err := os.WriteFile(golden, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: have\n%s\nwant\n%s", path, got, want)
		}
		for _, p := range ps {
			if p.Line == 0 && !strings.Contains(path, "binary") {
				t.Errorf("%s: no line: %s", path, p)
			}
		}
	}
}

func TestFullFile(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(strings.Repeat("0123456789abcdef", 4)), 0o600); err != nil {
		t.Fatal(err)
	}
	src, err := os.ReadFile("testdata/good/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("8f95f09245765f80256934e50c66207f\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	src = bytes.ReplaceAll(src, []byte("KEY"), []byte(key))
	c, err := Parse("full.yaml", bytes.ReplaceAll(src, []byte("SECRET"), []byte(secret)))
	if err != nil {
		t.Fatal(err)
	}
	if v := c.VIPs[1].Service(); v.Protocol != maps.ProtocolUDP || !v.Shadow || v.Owner != maps.OwnerFile || v.GeoPolicy != "default" {
		t.Errorf("%+v", v)
	}
	if r := c.Rate.Classes["default"].Class("default"); r.SYNs != (maps.Limit{PerSecond: 100, Burst: 100}) || r.Packets.Burst != 2000 {
		t.Errorf("%+v", r)
	}
	if s := c.Steering(); s.Node.Name != "edge1" || len(s.Sets["edges"]) != 2 || s.SecretFile != secret || s.Probe.Interval != 200*time.Millisecond || s.Probe.Protocol != "udp" {
		t.Errorf("%+v", s)
	}
	s := c.Steering()
	if a := s.SitesOf(c.VIPs[0].Abroad()); a != (maps.Sites{Carry: "edges.nyc", Hops: 1, Spill: "edges.nyc", SpillPoints: 250}) {
		t.Errorf("sites of a service that spills: %+v", a)
	}
	if a := s.SitesOf(c.VIPs[3].Abroad()); a != (maps.Sites{Carry: "edges.nyc", Hops: 1, Region: 2, Outside: true}) || s.Carry.Packets != 500_000 || s.Carry.SourcePackets != 50_000 {
		t.Errorf("sites of another region's service: %+v, %+v", a, s.Carry)
	}
	// The UDP service at a port where HTTP/3 is served is QUIC's; no other is.
	if c.VIPs[0].QUIC || !c.VIPs[1].Service().QUIC || c.VIPs[2].QUIC {
		t.Errorf("services of QUIC: %+v", c.VIPs)
	}
	s, err = c.ReadSteering()
	if err != nil || len(s.CIDs) != 2 || len(s.CIDs[0].Key) != 16 || len(c.Steering().CIDs[0].Key) != 0 || s.CIDs[1].ServerIDLen != 2 {
		t.Errorf("%+v %v", s.CIDs, err)
	}
	if id := c.ServerID(); id == nil || *id != c.Backends["edges"][0].Server() || c.Backends["edges"][1].Server() != 0x2000 {
		t.Errorf("server IDs of %+v", c.Backends)
	}
	if p := c.Anycast.Peers[0]; p.Port != 179 || p.BFD.Multiplier != 3 || p.BFD.Interval != 80*time.Millisecond || c.Anycast.RouterID != c.Node.Address4 || *c.Anycast.Announcements[0].MED != 5 {
		t.Errorf("%+v %+v", c.Anycast, p)
	}
	if a := c.Announces(); len(a) != 3 || a[0].String() != "192.0.2.10" {
		t.Errorf("%v", a)
	}
	if at := c.AnswersProbes(); len(at) != 1 || at[0].String() != "10.0.0.1:9191" {
		t.Errorf("%v", at)
	}
	if c.Origins["www"].Retries != 1 || c.Origins["www"].Probe.Interval != 2*time.Second || c.Cache.StaleIfError != time.Hour {
		t.Errorf("defaults of entries: %+v %+v", c.Origins["www"], c.Cache)
	}
}

// An empty file is an edge that serves nothing yet, and all defaults are valid.
func TestEmptyFile(t *testing.T) {
	c, err := Parse("empty", nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Node.Name == "" || maps.CheckName(c.Node.Name) != nil || c.Listen.HTTPS[0] != ":8443" || c.Kernel.Pins != "/sys/fs/bpf/berm" {
		t.Errorf("%+v", c)
	}
}

// As many services as the kernel half's table has room for are right, and one more is not.
func TestTooManyVIPs(t *testing.T) {
	for n, right := range map[int]bool{maps.MaxVIPs - 1: true, maps.MaxVIPs: false} {
		b := bytes.NewBufferString("vips:\n")
		for i := range n { // of one address
			fmt.Fprintf(b, "  - {name: s%d, address: 192.0.2.10, port: %d, protocol: tcp}\n", i, i+1)
		}
		path := filepath.Join(t.TempDir(), "berm.yaml")
		if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(path)
		if want := "berm.yaml:1:1: vips: 4096 services and addresses, 4095 fit"; right != (err == nil) || !right && !strings.Contains(err.Error(), want) {
			t.Errorf("%d services: %v", n, err)
		}
	}
}

func TestLoadWhatIsNotThere(t *testing.T) {
	for path, want := range map[string]string{"/nowhere/berm.yaml": "does not exist (", t.TempDir(): "is a directory"} {
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// Who only asks is told of a database that cannot be used, at its place; for the daemon it is no reason not to start.
func TestCheckReadsDatabases(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, bad := write("good.csv", "192.0.2.0/24,DE\n"), write("bad.csv", "192.0.2.0/24,DE\nnowhere,FR\n")
	path := write("berm.yaml", "geo:\n  databases: ["+good+", "+bad+"]\n  networks: ["+bad+"]\n")
	if _, err := Load(path); err != nil {
		t.Error(err)
	}
	_, err := Check(path)
	problems, _ := errors.AsType[Problems](err)
	if len(problems) != 2 || problems[0].Key != "geo.databases[1]" || problems[0].Line != 2 || !strings.Contains(problems[0].Message, "line 2") || problems[1].Key != "geo.networks[0]" {
		t.Errorf("%v", err)
	}
	path = write("berm.yaml", "geo: {databases: ["+good+", "+dir+"/none.csv]}\n")
	if _, err := Check(path); err == nil || strings.Count(err.Error(), "none.csv") > 2 {
		t.Errorf("%v", err)
	}
	if _, err := Check(write("berm.yaml", "geo: {databases: ["+good+"]}\n")); err != nil {
		t.Error(err)
	}
}

func TestNodeTakesItsBackendsAddress(t *testing.T) {
	c, err := Parse("f", []byte("node: {name: a}\nbackends: {s: [{name: a, address: 10.0.0.1}]}\n"))
	if err != nil || c.Node.Address4.String() != "10.0.0.1" {
		t.Errorf("%+v %v", c, err)
	}
}

// No file makes the whole of it panic: not the parser, not the checks behind it.
func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/*/*.yaml")
	for _, path := range files {
		if src, err := os.ReadFile(path); err == nil {
			f.Add(src)
		}
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		if bytes.Contains(src, []byte("_file")) || bytes.Contains(src, []byte("cert")) || bytes.Contains(src, []byte("databases")) {
			return // would read files of any name, such as /dev/zero
		}
		_, err := Parse("f", src)
		var ps Problems
		if err != nil && (!errors.As(err, &ps) || len(ps) == 0) {
			t.Errorf("an error that is no problem: %v", err)
		}
	})
}
