//go:build !linux

package doctor

import "errors"

func synchronized() (yes, known bool) { return false, false }

func space(string) (free, total int64, readOnly bool, err error) {
	return 0, 0, false, errors.ErrUnsupported
}
