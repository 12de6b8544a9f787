package certs

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// chains and keys are the names that a pair's halves have in a folder of their own: those of certbot, of
// Kubernetes' secrets, and of most scripts.
var (
	chains = []string{"fullchain.pem", "tls.crt", "cert.pem"}
	keys   = []string{"privkey.pem", "tls.key", "key.pem"}
)

// mostPairs bounds what one directory may hold: a tick looks at each.
const mostPairs = 10000

// racy is how long after it was written a file is read again although nothing says that it changed: two writes within
// one tick of the file system's clock look the same.
const racy = 2 * time.Second

// directory is the source of the pairs below tls.dir. What it gave stays in use until its successor is whole: a pair
// that does not fit, a half that is missing, and a directory that is empty or gone change nothing and are problems.
type directory struct {
	path  string
	pairs map[string]*dirPair // by the pair's name
	gone  string              // why the pairs stay although the directory does not have them
}

// dirPair is one pair as it was last looked at.
type dirPair struct {
	name    string
	seen    [2]stamp // of cert and key, before they were read
	read    time.Time
	digest  [sha256.Size]byte
	cert    *tls.Certificate // the last good one; nil: there was none
	problem string
}

// load looks at the directory again, and reports whether what it serves or complains of is another than before.
func (d *directory) load(now time.Time) (changed bool) {
	found, err := d.find()
	gone := ""
	switch {
	case err != nil:
		gone = err.Error()
	case len(found) == 0:
		gone = d.path + " holds no certificate with its key"
	}
	changed, d.gone = gone != d.gone, gone
	if gone != "" {
		return changed
	}
	next := make(map[string]*dirPair, len(found))
	for name, p := range found {
		old := d.pairs[name]
		e := old.look(name, p, now)
		if e != old {
			changed = true
		}
		next[name] = e
	}
	changed = changed || len(next) != len(d.pairs)
	d.pairs = next
	return changed
}

// look returns e itself when the pair is as it was.
func (e *dirPair) look(name string, p Pair, now time.Time) *dirPair {
	seen := [2]stamp{stampOf(p.Cert), stampOf(p.Key)}
	if e != nil && e.seen == seen && !seen[0].fresh(e.read) && !seen[1].fresh(e.read) {
		return e
	}
	next := &dirPair{name: name, seen: seen, read: now}
	next.digest = digest(p)
	if e != nil && e.digest == next.digest {
		e.seen, e.read = seen, now
		return e
	}
	c, err := p.load()
	if err == nil {
		next.cert = c
		return next
	}
	if e != nil && e.cert != nil {
		if seen[0].fresh(now) || seen[1].fresh(now) { // still being written, as it seems
			return e
		}
		next.cert = e.cert
		err = fmt.Errorf("%w; the certificate before it stays", err)
	}
	next.problem = err.Error()
	return next
}

// digest tells one content of a pair from another; files that cannot be read count as empty.
func digest(p Pair) (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, path := range []string{p.Cert, p.Key} {
		b, err := os.ReadFile(path)
		_, _ = fmt.Fprintln(h, len(b), err != nil)
		_, _ = h.Write(b) // a hash takes everything
	}
	h.Sum(sum[:0])
	return sum
}

// find lists the pairs by name: NAME.crt or NAME.pem beside NAME.key, NAME.pem that holds both, and folders with
// the halves under their usual names. A half alone is a pair whose other half is missing, but for authorities' own
// certificates, which lego writes as NAME.issuer.crt.
func (d *directory) find() (map[string]Pair, error) {
	entries, err := os.ReadDir(d.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s does not exist", d.path)
	case err != nil:
		return nil, err
	}
	found := map[string]Pair{}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") { // what is being written, and Kubernetes' own
			continue
		}
		path := filepath.Join(d.path, name)
		if fi, err := os.Stat(path); err == nil && fi.IsDir() { // through links, as in certbot's live
			if p := folderPair(path); p != (Pair{}) {
				found[name] = p
			}
			continue
		}
		ext := filepath.Ext(name)
		base := strings.TrimSuffix(name, ext)
		p := found[base]
		switch {
		case ext == ".key":
			p.Key = path
		case ext == ".crt" && !strings.HasSuffix(base, ".issuer"):
			p.Cert = path
		case ext == ".pem" && p.Cert == "": // NAME.crt, which comes first, wins
			p.Cert = path
		default:
			continue
		}
		found[base] = p
		if len(found) > mostPairs {
			return nil, fmt.Errorf("%s holds more than %d certificates", d.path, mostPairs)
		}
	}
	for base, p := range found {
		switch {
		case p.Key == "" && strings.HasSuffix(p.Cert, ".pem") && holdsKey(p.Cert):
			p.Key = p.Cert
		case p.Key == "":
			p.Key = filepath.Join(d.path, base+".key")
		case p.Cert == "":
			p.Cert = filepath.Join(d.path, base+".crt")
		}
		found[base] = p
	}
	return found, nil
}

// folderPair returns the pair in a folder; a half that is missing is named as the other's convention has it.
func folderPair(path string) Pair {
	for i := range chains {
		p := Pair{Cert: filepath.Join(path, chains[i]), Key: filepath.Join(path, keys[i])}
		if exists(p.Cert) || exists(p.Key) {
			return p
		}
	}
	return Pair{}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func holdsKey(path string) bool {
	b, err := os.ReadFile(path)
	return err == nil && bytes.Contains(b, []byte(" PRIVATE KEY-----"))
}

// sorted lists the pairs that can be served, by name, so that every edge has the same first one.
func (d *directory) sorted() []*dirPair {
	var out []*dirPair
	for _, e := range d.pairs {
		if e.cert != nil {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *dirPair) int { return strings.Compare(a.name, b.name) })
	return out
}

// problems says what is wrong with the directory, in order.
func (d *directory) problems() (out []string) {
	if d.gone != "" {
		text := "tls.dir: " + d.gone
		if len(d.pairs) > 0 {
			text += "; the certificates that it held stay"
		}
		out = append(out, text)
	}
	for _, e := range d.pairs {
		if e.problem != "" {
			out = append(out, "tls.dir: "+e.problem)
		}
	}
	slices.Sort(out)
	return out
}

// stamp tells one state of a file from another.
type stamp struct {
	modified time.Time
	size     int64
	inode    uint64
}

// stampOf follows links; a missing file differs from any that was there.
func stampOf(path string) stamp {
	fi, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	s := stamp{modified: fi.ModTime(), size: fi.Size()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		s.inode = st.Ino
	}
	return s
}

// fresh reports whether the file had only just been written when it was read.
func (s stamp) fresh(read time.Time) bool {
	return s != stamp{} && read.Sub(s.modified) < racy
}
