/* One mutex an object; the few places that need one use these names. */
#ifndef MRL_BASE_LOCK_H
#define MRL_BASE_LOCK_H

#include <pthread.h>

typedef pthread_mutex_t mrl_lock;

static inline void mrl_lock_init(mrl_lock *lock) { pthread_mutex_init(lock, NULL); }
static inline void mrl_lock_destroy(mrl_lock *lock) { pthread_mutex_destroy(lock); }
static inline void mrl_lock_acquire(mrl_lock *lock) { pthread_mutex_lock(lock); }
static inline void mrl_lock_release(mrl_lock *lock) { pthread_mutex_unlock(lock); }

#endif
