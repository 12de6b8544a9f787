package quiclb

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
)

// Config is the section quic.
type Config struct {
	// Formats of connection IDs: the first is given out, all are understood. Empty: IDs name no backend.
	CIDs []CID `yaml:"cid"`
}

// CID is a format of connection IDs; all edges of a site have the same ones.
type CID struct {
	ID             uint8  `yaml:"id"`               // tells formats apart that are in use at the same time, 0 to 6
	ServerIDLength int    `yaml:"server_id_length"` // bytes, 1 to 8; default 2
	NonceLength    int    `yaml:"nonce_length"`     // bytes, at least 4; default 6, with a key what fills one block (14)
	KeyFile        string `yaml:"key_file"`         // hides server IDs; 32 hex digits, the same on all edges
}

// Default is what an empty section means.
func Default() Config { return Config{CIDs: []CID{{}}} }

// Of CID's fields left out. A connection ID of 9 bytes is short enough for every packet, and has
// 48 random bits: among 100,000 of an edge, two are the same once in 30,000 such edges.
const (
	defaultServerID = 2
	defaultNonce    = 6
	// mostServerID is what the kernel half reads; the draft allows 15.
	mostServerID = 8
)

// Format is the format without its key.
func (c CID) Format() Format {
	f := Format{ID: c.ID, ServerIDLen: c.ServerIDLength, NonceLen: c.NonceLength}
	if f.ServerIDLen == 0 {
		f.ServerIDLen = defaultServerID
	}
	if f.NonceLen == 0 {
		f.NonceLen = defaultNonce
		if c.KeyFile != "" {
			f.NonceLen = oneBlock - f.ServerIDLen
		}
	}
	return f
}

// Validate reports everything wrong with the section, but for key files.
func (c Config) Validate() error {
	var errs []error
	seen := map[uint8]int{}
	for i, x := range c.CIDs {
		at := fmt.Sprintf("cid[%d]", i)
		if err := x.Format().Validate(); err != nil {
			for line := range strings.Lines(err.Error()) { // a mistake each
				errs = append(errs, fmt.Errorf("%s.%s", at, strings.TrimSuffix(line, "\n")))
			}
		} else if x.ServerIDLength > mostServerID {
			errs = append(errs, fmt.Errorf("%s.server_id_length: %d bytes: want 1 to %d", at, x.ServerIDLength, mostServerID))
		}
		if first, ok := seen[x.ID]; ok {
			errs = append(errs, fmt.Errorf("%s.id: %d is already cid[%d]'s (formats in use at the same time need different ids)", at, x.ID, first))
		} else {
			seen[x.ID] = i
		}
	}
	return errors.Join(errs...)
}

// Plain returns the formats without their keys.
func (c Config) Plain() []Format {
	var list []Format
	for _, x := range c.CIDs {
		list = append(list, x.Format())
	}
	return list
}

// Formats returns the formats with their keys, in the section's order.
func (c Config) Formats() ([]Format, error) {
	list := c.Plain()
	for i, x := range c.CIDs {
		if x.KeyFile == "" {
			continue
		}
		var err error
		if list[i].Key, err = ReadKey(x.KeyFile); err != nil {
			return nil, fmt.Errorf("quic.cid[%d].key_file: %w", i, err)
		}
	}
	return list, nil
}

// ReadKey reads a key of AES-128: 32 hex digits, as openssl rand -hex 16 prints. What is in the file
// is in no error.
func ReadKey(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("key of connection IDs: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("key of connection IDs %s: everybody may use it (mode %04o): chmod 640 it, with the daemon's group", path, info.Mode().Perm())
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("key of connection IDs: %w", err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(raw)))
	if err != nil || len(key) != oneBlock {
		return nil, fmt.Errorf("key of connection IDs %s: want %d hex digits and nothing else (openssl rand -hex %d)", path, 2*oneBlock, oneBlock)
	}
	return key, nil
}
