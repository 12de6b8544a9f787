package cache

import (
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
)

func TestDefaultsAreValid(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
}

func TestConfigFromFile(t *testing.T) {
	cfg := DefaultConfig()
	err := yaml.UnmarshalWithOptions([]byte("memory: 1GiB\nmax_object: 1048576\ndefault_ttl: 5s\nname: edge1\n"), &cfg, yaml.Strict())
	if err != nil || cfg.Memory != 1<<30 || cfg.MaxObject != 1<<20 || cfg.DefaultTTL != 5*time.Second || cfg.Name != "edge1" ||
		cfg.PassTTL != DefaultConfig().PassTTL {
		t.Errorf("%+v, %v", cfg, err)
	}
	if err := yaml.Unmarshal([]byte("memory: 1XiB"), &cfg); err == nil || !strings.Contains(err.Error(), "not a size") {
		t.Errorf("a bad size: %v", err)
	}
}

func TestBytes(t *testing.T) {
	for text, want := range map[string]Bytes{"0": 0, "7": 7, "7B": 7, "1KiB": 1024, "64 MiB": 64 << 20, "2GB": 2e9, "1TiB": 1 << 40} {
		var b Bytes
		if err := b.UnmarshalText([]byte(text)); err != nil || b != want {
			t.Errorf("%q: %d, %v", text, b, err)
		}
		var again Bytes
		if err := again.UnmarshalText([]byte(b.String())); err != nil || again != b {
			t.Errorf("%q became %s, then %d, %v", text, b, again, err)
		}
	}
	for _, bad := range []string{"", "-1", "1.5GiB", "GiB", "9999999999TiB", "1 gib"} {
		var b Bytes
		if err := b.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is accepted as %d", bad, b)
		}
	}
}

func TestConfigMistakes(t *testing.T) {
	err := Config{
		Memory: 1, MaxObject: 0, DefaultTTL: -1, HeuristicLimit: -1, StaleIfError: -1, StaleWhileRevalidate: -1,
		PassTTL: -1, Name: "a b",
	}.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		"cache.memory: 1 is below 1MiB", "cache.max_object", "cache.default_ttl", "cache.heuristic_limit",
		"cache.stale_if_error", "cache.stale_while_revalidate", "cache.pass_ttl", "cache.name",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in:\n%v", want, err)
		}
	}
	if _, err := New(Config{}, nil, nil); err == nil {
		t.Error("New accepted it")
	}
}
