package quiclb

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const keyHex = "8f95f09245765f80256934e50c66207f"

func mustWrite(t *testing.T, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfig(t *testing.T) {
	key := mustWrite(t, keyHex+"\n", 0o640)
	c := Config{CIDs: []CID{{KeyFile: key}, {ID: 1}, {ID: 2, ServerIDLength: 3, NonceLength: 4, KeyFile: key}}}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	got, err := c.Formats()
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []Format{
		{ID: 0, ServerIDLen: 2, NonceLen: 14, Key: mustHex(t, keyHex)}, // one block
		{ID: 1, ServerIDLen: 2, NonceLen: 6},
		{ID: 2, ServerIDLen: 3, NonceLen: 4, Key: mustHex(t, keyHex)},
	} {
		if f := got[i]; f.ID != want.ID || f.ServerIDLen != want.ServerIDLen || f.NonceLen != want.NonceLen || !bytes.Equal(f.Key, want.Key) {
			t.Errorf("format %d: %+v, want %+v", i, f, want)
		}
		if c.Plain()[i].Key != nil {
			t.Errorf("format %d has its key where it is not asked for", i)
		}
	}
	if err := Default().Validate(); err != nil {
		t.Error(err)
	}
}

func TestConfigRefuses(t *testing.T) {
	for want, c := range map[string]Config{
		"cid[0].id: 7":                         {CIDs: []CID{{ID: 7}}},
		"cid[1].id: 0 is already cid[0]'s":     {CIDs: []CID{{}, {}}},
		"cid[0].server_id_length: 16 bytes":    {CIDs: []CID{{ServerIDLength: 16}}},
		"cid[0].server_id_length: 9 bytes":     {CIDs: []CID{{ServerIDLength: 9}}},
		"cid[0].server_id_length: -1 bytes":    {CIDs: []CID{{ServerIDLength: -1}}},
		"cid[0].nonce_length: 3 bytes":         {CIDs: []CID{{NonceLength: 3}}},
		"cid[0].nonce_length: 18 bytes: want ": {CIDs: []CID{{NonceLength: 18}}},
	} {
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
}

// A key file that is not right is named, and nothing of it is told.
func TestReadKey(t *testing.T) {
	for want, path := range map[string]string{
		"no such file":       filepath.Join(t.TempDir(), "none"),
		"everybody may use":  mustWrite(t, keyHex, 0o644),
		"want 32 hex digits": mustWrite(t, keyHex[:30], 0o600),
		"want 32 hex":        mustWrite(t, "secretsecretsecretsecretsecretse", 0o600),
		"hex digits and not": mustWrite(t, keyHex+keyHex, 0o600),
	} {
		_, err := Config{CIDs: []CID{{KeyFile: path}}}.Formats()
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "quic.cid[0].key_file") {
			t.Errorf("%v, want %q", err, want)
		}
		if err != nil && (strings.Contains(err.Error(), keyHex[:8]) || strings.Contains(err.Error(), "secretsecret")) {
			t.Errorf("the error has the key: %v", err)
		}
	}
}

func mustGenerate(t *testing.T, g *Generator) []byte {
	t.Helper()
	cid, err := g.GenerateConnectionID()
	if err != nil {
		t.Fatal(err)
	}
	if cid.Len() != g.ConnectionIDLen() {
		t.Fatalf("%d bytes, want %d", cid.Len(), g.ConnectionIDLen())
	}
	return cid.Bytes()
}

// IDs are made until one fits, and name the server all the same.
func TestGeneratorFits(t *testing.T) {
	for name, f := range map[string]Format{
		"plain": {ServerIDLen: 2, NonceLen: 6}, "encrypted": {ID: 1, ServerIDLen: 2, NonceLen: 14, Key: make([]byte, 16)},
	} {
		g := NewGenerator(f.Len())
		refused := 0
		fitting := g.Fitting(func(cid []byte) bool {
			if cid[len(cid)-1]&3 == 2 {
				return true
			}
			refused++
			return false
		})
		for named, use := range map[bool]func() error{
			false: func() error { return g.Use(nil, nil) }, true: func() error { return g.Use([]Format{f}, new(uint64(77))) },
		} {
			if err := use(); err != nil {
				t.Fatal(err)
			}
			for range 100 {
				id, err := fitting.GenerateConnectionID()
				if err != nil || id.Len() != f.Len() || id.Bytes()[f.Len()-1]&3 != 2 {
					t.Fatalf("%s: %x, %v", name, id.Bytes(), err)
				}
				if n, err := Number(f, id.Bytes()); named && (err != nil || n != 77) {
					t.Errorf("%s: %x is of server %d, %v", name, id.Bytes(), n, err)
				}
			}
		}
		if refused < 200 {
			t.Errorf("%s: %d were refused, and three of four should be", name, refused)
		}
	}
}

func TestGenerator(t *testing.T) {
	plain := Format{ID: 0, ServerIDLen: 2, NonceLen: 6}
	hidden := Format{ID: 3, ServerIDLen: 2, NonceLen: 6, Key: mustHex(t, keyHex)}
	long := Format{ID: 1, ServerIDLen: 2, NonceLen: 14}
	server := uint64(0x0203)
	g := NewGenerator(plain.Len())
	if cid := mustGenerate(t, g); cid[0] != 7<<5|8 {
		t.Errorf("an ID that names nobody: %x", cid)
	}
	for _, step := range []struct {
		name    string
		formats []Format
		server  *uint64
		want    *Format
		err     error
	}{
		{"first of two", []Format{plain, hidden}, &server, &plain, nil},
		{"rotated", []Format{hidden, plain}, &server, &hidden, nil},
		{"first of another length", []Format{long, hidden}, &server, &hidden, ErrLength},
		{"none of the length", []Format{long}, &server, nil, ErrLength},
		{"no format", nil, &server, nil, nil},
		{"no server", []Format{plain}, nil, nil, nil},
	} {
		if err := g.Use(step.formats, step.server); !errors.Is(err, step.err) {
			t.Errorf("%s: %v, want %v", step.name, err, step.err)
		}
		seen := map[string]bool{}
		for range 1000 {
			cid := mustGenerate(t, g)
			if seen[string(cid)] {
				t.Fatalf("%s: %x twice", step.name, cid)
			}
			seen[string(cid)] = true
			if step.want == nil {
				if cid[0]>>5 != unroutable {
					t.Fatalf("%s: %x names somebody", step.name, cid)
				}
				continue
			}
			if n, err := Number(*step.want, cid); err != nil || n != server {
				t.Fatalf("%s: %x names %d, %v, want %d", step.name, cid, n, err, server)
			}
		}
	}
	if err := g.Use([]Format{{ID: 9}}, &server); err == nil || errors.Is(err, ErrLength) {
		t.Errorf("a format that cannot be: %v", err)
	}
}

func TestServerID(t *testing.T) {
	for want, got := range map[string][]byte{"0203": ServerID(0x0203, 2), "03": ServerID(0x0203, 1), "0000000000000000000203": ServerID(0x0203, 11)} {
		if !bytes.Equal(got, mustHex(t, want)) {
			t.Errorf("%x, want %s", got, want)
		}
	}
}
