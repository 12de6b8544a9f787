package tickets

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A key's file is named after the begin of its time, in UTC, so that edges agree on which one is whose successor.
const (
	prefix = "ticket-"
	suffix = ".key"
	layout = "20060102T150405Z"
)

// keyLen is what crypto/tls derives a ticket's AES and HMAC keys from.
const keyLen = 32

// key makes tickets from its begin until the next one's.
type key struct {
	begin  time.Time
	secret [keyLen]byte
}

func fileOf(dir string, begin time.Time) string {
	return filepath.Join(dir, prefix+begin.UTC().Format(layout)+suffix)
}

// readKeys reads the keys in dir. Problems are of single files, which are left out; the error is of dir itself.
func readKeys(dir string) (keys []key, problems []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, explain(dir, err)
	}
	for _, e := range entries {
		name := e.Name()
		if !strings.HasPrefix(name, prefix) || !strings.HasSuffix(name, suffix) {
			continue
		}
		path := filepath.Join(dir, name)
		k, err := readKey(path)
		if err != nil {
			problems = append(problems, "tls.tickets: "+err.Error())
			continue
		}
		if fi, err := os.Stat(path); err == nil && fi.Mode()&0o007 != 0 {
			problems = append(problems, fmt.Sprintf("tls.tickets: %s is open to everybody on this host (chmod 600)", path))
		}
		keys = append(keys, k)
	}
	return keys, problems, nil
}

// readKey reads one file. What is wrong with it never quotes what is in it.
func readKey(path string) (k key, err error) {
	name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), prefix), suffix)
	if k.begin, err = time.Parse(layout, name); err != nil {
		return key{}, fmt.Errorf("%s is not named after a time (%s%s%s)", path, prefix, layout, suffix)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return key{}, explain(path, err)
	}
	b = bytes.TrimSpace(b)
	if len(b) != hex.EncodedLen(keyLen) {
		return key{}, fmt.Errorf("%s does not hold %d hex digits", path, hex.EncodedLen(keyLen))
	}
	if _, err := hex.Decode(k.secret[:], b); err != nil {
		return key{}, fmt.Errorf("%s does not hold %d hex digits", path, hex.EncodedLen(keyLen))
	}
	return k, nil
}

func explain(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s does not exist", path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s may not be read by uid %d", path, os.Geteuid())
	}
	return err
}

// createKey writes a new key's file, whole or not at all, which only its owner reads. When another edge was faster,
// its key is returned.
func createKey(dir string, begin time.Time) (key, error) {
	k := newKey(begin)
	path := fileOf(dir, begin)
	err := func() error {
		f, err := os.CreateTemp(dir, "."+prefix+"*") // made 0600
		if err != nil {
			return err
		}
		defer os.Remove(f.Name()) // the link below keeps what it holds
		if _, err := f.WriteString(hex.EncodeToString(k.secret[:]) + "\n"); err != nil {
			return errors.Join(err, f.Close())
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
		return os.Link(f.Name(), path) // a rename would replace another edge's
	}()
	if errors.Is(err, fs.ErrExist) {
		return readKey(path)
	}
	if err != nil {
		return key{}, fmt.Errorf("make a ticket key: %w", err)
	}
	return k, nil
}

func newKey(begin time.Time) key {
	k := key{begin: begin}
	_, _ = rand.Read(k.secret[:]) // never fails, and ends the process if it ever does
	return k
}
