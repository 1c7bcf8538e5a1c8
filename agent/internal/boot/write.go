package boot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/skein-fleet/skein/ota"
)

const writeBlock = 1 << 20

// WriteSlot implements Bootloader: the image goes straight to the partition of
// the slot that does not run, is synced and read back.
func (n *NVBootctl) WriteSlot(ctx context.Context, slot int, image io.Reader, size int64, want ota.Digest) error {
	inv, err := n.Inventory(ctx)
	if err != nil {
		return err
	}
	if inv.Rootfs.Current == NoNumber || inv.Rootfs.Current == slot {
		return fmt.Errorf("write rootfs slot %s: it runs, or what runs is unknown", letter(slot))
	}
	device := n.partition(slot)
	if device == "" {
		return fmt.Errorf("write rootfs slot %s: no partition labelled APP or APP_b for it", letter(slot))
	}
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("write rootfs slot %s: %w", letter(slot), err)
	}
	err = fill(ctx, f, image, size, want)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write rootfs slot %s (%s): %w", letter(slot), device, err)
	}
	return nil
}

// device is where an image goes.
type device interface {
	io.ReadWriteSeeker
	Sync() error
}

// fill writes an image to the beginning of a device and proves that it is
// there. Memory is one block.
func fill(ctx context.Context, d device, image io.Reader, size int64, want ota.Digest) error {
	if end, err := d.Seek(0, io.SeekEnd); err == nil && end > 0 && end < size {
		return fmt.Errorf("the image has %d bytes, the slot %d", size, end)
	}
	if _, err := d.Seek(0, io.SeekStart); err != nil {
		return err
	}
	buf := make([]byte, writeBlock)
	var done int64
	for done < size {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.ReadFull(image, buf[:min(int64(len(buf)), size-done)])
		if err != nil {
			return fmt.Errorf("read the image at byte %d: %w", done+int64(n), err)
		}
		if _, err := d.Write(buf[:n]); err != nil {
			return err
		}
		done += int64(n)
	}
	if err := d.Sync(); err != nil {
		return err
	}
	if _, err := d.Seek(0, io.SeekStart); err != nil {
		return err
	}
	h := sha256.New()
	for done = 0; done < size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.ReadFull(d, buf[:min(int64(len(buf)), size-done)])
		if err != nil {
			return fmt.Errorf("%w: byte %d: %w", ErrReadBack, done, err)
		}
		h.Write(buf[:n])
		done += int64(n)
	}
	if got := ota.DigestFromSum([sha256.Size]byte(h.Sum(nil))); got != want {
		return fmt.Errorf("%w: %s, want %s", ErrReadBack, got.Short(), want.Short())
	}
	return nil
}
