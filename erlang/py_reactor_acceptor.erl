%%% An acceptor: waits for clients on its own duplicate of the listening socket, and has native code
%%% hand them to contexts, a batch at a time. No connection passes through this process.
%%%
%%% It is always in one of these states; each says what can end it:
%%%
%%% - `armed', nobody waits to be accepted: `{select, Acceptor, undefined, ready_input}', from the BEAM's
%%%   poll thread;
%%% - `lent', a worker accepts by itself: `{accept, Acceptor}', from native code, when it has given the
%%%   socket back, or when a callback holds that worker up;
%%% - `more', there may be more than one batch: `{accept, Acceptor}', from itself, so that other messages
%%%   have their turn between batches;
%%% - `full', there are `max_connections' already: `{py_place, free}', from native code, when one ends or
%%%   when there may be more;
%%% - `paused', something is short that only time can bring: `{timeout, Timer, pause}';
%%% - `closed', the listener is suspended: `listen', a cast of the listener.
%%%
%%% In all of them the cast `close' of the listener leads to `closed'. When this process dies, its
%%% duplicate is closed by native code.
-module(py_reactor_acceptor).

-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").

%% API
-export([start_link/3, listen/1, close/1]).

%% gen_server callbacks
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2]).

-record(state, {
    supervisor :: pid(),
    listener :: py_nif:listener(),
    contexts :: all | [py_reactor_context:context()],
    %% Who is told of pauses.
    leader :: pid() | undefined,
    acceptor :: py_nif:acceptor() | undefined,
    timer :: reference() | undefined
}).

%% While the process has no descriptor left: not so long that a client would notice, nor so short
%% that it takes time from those who could give one back.
-define(PAUSE_MS, 100).

-spec start_link(pid(), py_nif:listener(), all | [py_reactor_context:context()]) ->
    gen_server:start_ret().
start_link(Supervisor, Listener, Contexts) ->
    State = #state{supervisor = Supervisor, listener = Listener, contexts = Contexts},
    gen_server:start_link(?MODULE, State, []).

%% @doc The listening socket was opened.
-spec listen(pid()) -> ok.
listen(Acceptor) ->
    gen_server:cast(Acceptor, listen).

%% @doc The listening socket was closed.
-spec close(pid()) -> ok.
close(Acceptor) ->
    gen_server:cast(Acceptor, close).

%%--------------------------------------------------------------------------------------------------
%% gen_server

%% @private
-spec init(#state{}) -> {ok, #state{}, {continue, join}}.
init(State) ->
    {ok, State, {continue, join}}.

%% @private
-spec handle_continue(join, #state{}) -> {noreply, #state{}}.
handle_continue(join, #state{supervisor = Supervisor} = State) ->
    Leader = py_reactor_listener_sup:listener(Supervisor),
    %% From here on it sends `listen' and `close'; whether the socket is open now is seen by trying.
    ok = py_reactor_listener:join(Leader),
    {noreply, open(State#state{leader = Leader})}.

%% @private
-spec handle_call(term(), gen_server:from(), #state{}) -> {reply, {error, unknown_call}, #state{}}.
handle_call(Call, _From, State) ->
    ?LOG_WARNING(#{what => unexpected_call, process => ?MODULE, call => Call}),
    {reply, {error, unknown_call}, State}.

%% @private
-spec handle_cast(listen | close, #state{}) -> {noreply, #state{}}.
handle_cast(listen, State) ->
    {noreply, open(closed(State))};
handle_cast(close, State) ->
    {noreply, closed(State)};
handle_cast(Cast, State) ->
    ?LOG_WARNING(#{what => unexpected_cast, process => ?MODULE, cast => Cast}),
    {noreply, State}.

%% @private
-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info({select, Acceptor, undefined, ready_input}, #state{acceptor = Acceptor} = State) ->
    {noreply, accept(State)};
handle_info({accept, Acceptor}, #state{acceptor = Acceptor} = State) ->
    {noreply, accept(State)};
handle_info({timeout, Timer, pause}, #state{timer = Timer} = State) ->
    {noreply, resume(State#state{timer = undefined})};
handle_info({py_place, free}, #state{acceptor = Acceptor} = State) when Acceptor =/= undefined ->
    {noreply, accept(State)};
%% What was on its way when the socket was closed.
handle_info({select, _Closed, undefined, ready_input}, State) ->
    {noreply, State};
handle_info({accept, _Closed}, State) ->
    {noreply, State};
handle_info({timeout, _Cancelled, pause}, State) ->
    {noreply, State};
handle_info({py_place, free}, State) ->
    {noreply, State};
handle_info(Message, State) ->
    ?LOG_WARNING(#{what => unexpected_message, process => ?MODULE, message => Message}),
    {noreply, State}.

%%--------------------------------------------------------------------------------------------------

open(#state{listener = Listener, acceptor = undefined} = State) ->
    case py_nif:acceptor_open(Listener) of
        {ok, Acceptor} -> accept(State#state{acceptor = Acceptor});
        closed -> State;
        {error, Reason} -> pause(Reason, State)
    end.

%% After a pause, which may have been for want of a descriptor to listen with.
resume(#state{acceptor = undefined} = State) -> open(State);
resume(State) -> accept(State).

accept(#state{acceptor = Acceptor, contexts = Contexts} = Waited) ->
    _ = cancel(Waited),
    State = Waited#state{timer = undefined},
    case py_nif:acceptor_accept(Acceptor, py_reactor_pool:handles(Contexts)) of
        armed ->
            State;
        more ->
            self() ! {accept, Acceptor},
            State;
        full ->
            State;
        lent ->
            State;
        {pause, Reason} ->
            pause(Reason, State);
        closed ->
            closed(State)
    end.

pause(Reason, #state{leader = Leader} = State) ->
    ok = py_reactor_listener:paused(Leader, Reason),
    wait(?PAUSE_MS, State).

wait(TimeMs, State) ->
    _ = cancel(State),
    State#state{timer = erlang:start_timer(TimeMs, self(), pause)}.

closed(#state{acceptor = Acceptor} = State) ->
    _ = [py_nif:acceptor_close(Acceptor) || Acceptor =/= undefined],
    _ = cancel(State),
    State#state{acceptor = undefined, timer = undefined}.

cancel(#state{timer = undefined}) -> false;
cancel(#state{timer = Timer}) -> erlang:cancel_timer(Timer).
