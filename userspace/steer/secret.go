package steer

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/bermedge/berm/maps"
)

// Secret is what the edges of a site share.
type Secret struct {
	Maps  maps.Secrets
	Probe [32]byte // authenticates probes and their answers
}

// minSecret keeps guessing out of reach: 16 random bytes written in hex are 32 characters.
const minSecret = 32

// ReadSecret reads a site's secret. The plain form is one line of at least 32 characters, as
// openssl rand -hex 32 prints. To rotate what tunnels are marked with, write
//
//	rows <the line as it was>
//	tags <the line as it was>
//	tags <a new line>
//
// to all edges, then swap the two lines of tags on all, then remove the old one on all: each
// edge marks with the first and accepts both. Rows stay: another line there moves all flows.
func ReadSecret(path string) (Secret, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Secret{}, fmt.Errorf("site secret: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return Secret{}, fmt.Errorf("site secret %s: everybody may use it (mode %04o): chmod 640 it, with the daemon's group", path, info.Mode().Perm())
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return Secret{}, fmt.Errorf("site secret: %w", err)
	}
	s, err := parseSecret(raw)
	if err != nil {
		return Secret{}, fmt.Errorf("site secret %s: %w", path, err)
	}
	return s, nil
}

func parseSecret(raw []byte) (Secret, error) {
	var rows string
	var tags []string
	for i, line := range bytes.Split(raw, []byte("\n")) {
		text := strings.TrimSpace(string(line))
		if text == "" || text[0] == '#' {
			continue
		}
		kind, value, isTagged := strings.Cut(text, " ")
		value = strings.TrimSpace(value)
		if !isTagged {
			kind, value = "", text
		}
		if len(value) < minSecret {
			return Secret{}, fmt.Errorf("line %d: the secret has %d characters, want at least %d (openssl rand -hex 32)", i+1, len(value), minSecret)
		}
		switch kind {
		case "":
			if rows != "" || tags != nil {
				return Secret{}, fmt.Errorf("line %d: a plain secret must be the only line: write rows or tags before it", i+1)
			}
			rows, tags = value, []string{value}
		case "rows":
			if rows != "" {
				return Secret{}, fmt.Errorf("line %d: a second secret of rows", i+1)
			}
			rows = value
		case "tags":
			tags = append(tags, value)
		default:
			return Secret{}, fmt.Errorf("line %d: %q: want rows or tags", i+1, kind)
		}
	}
	switch {
	case rows == "":
		return Secret{}, errors.New("has no secret of rows")
	case len(tags) < 1 || len(tags) > 2:
		return Secret{}, fmt.Errorf("has %d secrets of tags, want one, or two while they rotate", len(tags))
	}
	return derive(rows, tags), nil
}

func derive(rows string, tags []string) Secret {
	flow := expand(rows, "flow")
	s := Secret{Probe: expand(rows, "probe")}
	s.Maps.Flow = [2]uint64{binary.BigEndian.Uint64(flow[:]), binary.BigEndian.Uint64(flow[8:])}
	for i, tag := range tags {
		key := expand(tag, "tag")
		s.Maps.Tags[i] = max(1, binary.BigEndian.Uint64(key[:])) // 0 would mean none
	}
	return s
}

func expand(secret, purpose string) (key [32]byte) {
	b, err := hkdf.Key(sha256.New, []byte(secret), nil, "berm site secret: "+purpose, len(key))
	if err != nil {
		panic(err) // the length is a constant that HKDF allows
	}
	copy(key[:], b)
	return key
}

// ownSecret is for a host whose rows nobody shares: what the maps hold, so that a restart moves no
// flow, or else a random one.
func ownSecret(held maps.Secrets) Secret {
	s := derive(rand.Text()+rand.Text(), []string{rand.Text() + rand.Text()})
	if held.Flow != [2]uint64{} {
		s.Maps.Flow = held.Flow
	}
	if held.Tags[0] != 0 {
		s.Maps.Tags = held.Tags
	}
	return s
}
