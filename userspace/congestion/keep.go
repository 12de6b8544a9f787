package congestion

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// What was learned outlives the daemon in files of its state directory: a line with a checksum, and one with what it is of.
const (
	stateFormat = 1
	maxState    = 64 << 20 // of what any of them takes, and room
)

type stateHead struct {
	Format int    `json:"format"`
	Bytes  int    `json:"bytes"`
	CRC    uint32 `json:"crc32c"`
}

// ErrState is what all damage to a file is.
var ErrState = errors.New("is not as it was written")

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// Keep writes v to a file: the old content stays or the new one is there, never half of it.
func Keep(path string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	head, err := json.Marshal(stateHead{stateFormat, len(body), checksum(body)})
	if err != nil {
		return err
	}
	return writeWhole(path, slices.Concat(head, []byte("\n"), body, []byte("\n")))
}

func writeWhole(path string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, werr := f.Write(content)
	if err := errors.Join(werr, f.Chmod(0o640), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// Kept reads what Keep wrote, and has check look at it. A file that is not as it was written is set aside, and told; one that is not there is
// no error, and v stays as it is.
func Kept[T any](path string, check func(T) error) (v T, err error) {
	v, err = readState(path, check)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return v, nil
	case errors.Is(err, ErrState):
		aside := path + ".refused"
		return *new(T), errors.Join(fmt.Errorf("%s %w: it is set aside as %s", path, err, aside), os.Rename(path, aside))
	}
	return v, err
}

func readState[T any](path string, check func(T) error) (v T, err error) {
	f, err := os.Open(path)
	if err != nil {
		return v, err
	}
	defer f.Close() //nolint:errcheck // only read
	all, err := io.ReadAll(io.LimitReader(f, maxState+1))
	switch {
	case err != nil:
		return v, err
	case len(all) > maxState:
		return v, fmt.Errorf("%w: it is longer than %d bytes", ErrState, maxState)
	}
	body, err := bodyOf(all)
	if err != nil {
		return v, fmt.Errorf("%w: %w", ErrState, err)
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return v, fmt.Errorf("%w: %w", ErrState, err)
	}
	if err := check(v); err != nil {
		return v, fmt.Errorf("%w: %w", ErrState, err)
	}
	return v, nil
}

func bodyOf(all []byte) ([]byte, error) {
	end := slices.Index(all, '\n')
	var head stateHead
	if end < 0 || json.Unmarshal(all[:end], &head) != nil {
		return nil, errors.New("its first line is no header")
	}
	body := all[end+1:]
	switch {
	case head.Format != stateFormat:
		return nil, fmt.Errorf("format %d, this program reads %d", head.Format, stateFormat)
	case head.Bytes < 0 || len(body) != head.Bytes+1 || checksum(body[:head.Bytes]) != head.CRC:
		return nil, errors.New("its checksum is another")
	}
	return body, nil
}
