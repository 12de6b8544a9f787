package steer

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

var plainCID = maps.CIDFormat{ID: 0, ServerIDLen: 2, NonceLen: 6}

// Numbers made of names are the site's for ever: edges of another release must come to the same.
func TestDefaultServerIDs(t *testing.T) {
	for name, want := range map[string]uint64{"edge1": 0x2a2d, "edge2": 0x095d} {
		if got := (Backend{Name: name}).Server(); got != want {
			t.Errorf("%s: %#x, want %#x", name, got, want)
		}
	}
	zero := uint64(0)
	if got := (Backend{Name: "edge1", ServerID: &zero}).Server(); got != 0 {
		t.Errorf("written: %d", got)
	}
}

func TestValidateServerIDs(t *testing.T) {
	one, big := uint64(1), uint64(1<<16)
	of := func(b ...Backend) map[string][]Backend {
		for i := range b {
			b[i].Address = addr("192.0.2.1").Next()
		}
		return map[string][]Backend{"edges": b}
	}
	short := maps.CIDFormat{ID: 3, ServerIDLen: 1, NonceLen: 4}
	for want, c := range map[string]Config{
		`backends.edges[1].server_id: 1 is already that of backend "a"`: {Sets: of(Backend{Name: "a", ServerID: &one}, Backend{Name: "b", ServerID: &one}), CIDs: []maps.CIDFormat{plainCID}},
		"backends.edges[0].server_id: 65536 does not fit":               {Sets: of(Backend{Name: "a", ServerID: &big}), CIDs: []maps.CIDFormat{plainCID}},
		"does not fit the 1 byte of connection ID format 3":             {Sets: of(Backend{Name: "edge1"}), CIDs: []maps.CIDFormat{plainCID, short}},
		`more[0].server_id: backend "a" has 1 elsewhere and 65536 here`: {Sets: map[string][]Backend{"edges": {{Name: "a", ServerID: &one}}, "more": {{Name: "a", ServerID: &big}}}, CIDs: []maps.CIDFormat{{ServerIDLen: 3, NonceLen: 4}}},
		"": {Sets: of(Backend{Name: "a", ServerID: &one}, Backend{Name: "b", ServerID: &one})}, // nobody uses them
	} {
		err := c.Validate()
		if want == "" && err != nil && strings.Contains(err.Error(), "server_id") || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// The kernel half is told who has which server ID, in which sets, and forgets those that are gone.
func TestControllerNamesServers(t *testing.T) {
	k := mapstest.New(t)
	c := newController(t, k)
	cfg := site(t, freePort(t))
	large := uint64(1 << 20)
	cfg.Sets["edges"][2].ServerID = &large
	cfg.Sets["two"] = cfg.Sets["edges"][:2]
	cfg.CIDs = []maps.CIDFormat{{ID: 1, ServerIDLen: 3, NonceLen: 13, Key: []byte("0123456789abcdef")}, {ID: 0, ServerIDLen: 4, NonceLen: 6}}
	if _, err := c.Apply(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	formats, err := k.CIDs.Formats()
	if err != nil || len(formats) != 2 || string(formats[1].Key) != "0123456789abcdef" {
		t.Errorf("formats %+v, %v", formats, err)
	}
	sets, err := k.Sets.List()
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]uint32{}
	for _, s := range sets {
		ids[s.Name] = s.ID
	}
	for _, b := range cfg.Sets["edges"] {
		s, err := k.CIDs.Server(b.Server())
		if err != nil {
			t.Fatal(err)
		}
		known, err := k.Backends.ByID(s.Backend)
		if err != nil || known.Name != b.Name {
			t.Errorf("server ID %d is that of %s, %v, want %s", b.Server(), known.Name, err, b.Name)
		}
		want := []uint32{min(ids["edges"], ids["two"]), max(ids["edges"], ids["two"])}
		if b.Name == "edge3" {
			want = []uint32{ids["edges"]}
		}
		if !reflect.DeepEqual(s.Sets, want) {
			t.Errorf("%s: of sets %v, want %v", b.Name, s.Sets, want)
		}
	}

	next := cfg
	next.Sets = map[string][]Backend{"edges": cfg.Sets["edges"][:2]}
	next.CIDs = cfg.CIDs[1:]
	if _, err := c.Apply(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	if _, err := k.CIDs.Server(large); !errors.Is(err, maps.ErrNotFound) {
		t.Errorf("the server ID of a backend that is gone: %v", err)
	}
	next.CIDs = nil
	if _, err := c.Apply(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	formats, err = k.CIDs.Formats()
	servers, err2 := k.CIDs.Servers()
	// Server IDs stay: ICE username fragments name them too.
	if len(formats) != 0 || len(servers) != 2 || errors.Join(err, err2) != nil {
		t.Errorf("without formats: %v, %v, %v; want no format and two servers", formats, servers, errors.Join(err, err2))
	}
}
