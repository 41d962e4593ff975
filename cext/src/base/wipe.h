/*
 * wipe.h: nothing of a private number is left behind by the functions that worked with it.
 */
#ifndef NS_WIPE_H
#define NS_WIPE_H

/* Wipes what functions that were called from where this is called have left on the stack, and what their
 * copies have left in registers: the dynamic linker puts all of these on the stack when whoever goes on calls
 * a function for the first time. */
void wipe_behind(void);

#endif
