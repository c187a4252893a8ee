/* SPDX-License-Identifier: Apache-2.0 */
/* steer.h - which queue of the TUN a packet goes to: always the same one for a flow. */
#ifndef STEER_H
#define STEER_H

int steer_load(void);
int steer_by_flow(int tun_fd);

#endif
